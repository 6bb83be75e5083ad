"""Classifiers and CLIP's towers of timm, by name, with the weights it publishes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from ppap.files.checkpoints import CheckpointError, check_and_load, load_state, one_line
from ppap.files.wrapped import fitted
from ppap.predictors.model_options import made_for, options_named
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.similarity import SimilarityTask

__all__ = ["load_timm"]

logger = logging.getLogger(__name__)

HEAD_WIDTH = 64
"""Of an attention head, whose multiples the widths of embeddings are, and no published classes."""


def load_timm(
    name: str,
    weights: str | Path | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Predictor:
    """A model of timm with the normalisation and input size of its weights.

    The size is that at which timm tests the weights, which for many is larger than that at which
    they were trained (``resnet50.tv2_in1k``: 224 after 176).

    The tower of a CLIP that sees images (``vit_base_patch16_clip_224.openai``) gives embeddings,
    unless ``num_classes`` says that its last layer has become a classifier.

    Args:
        name: of the architecture and maybe its weights, e.g. ``"resnet50.tv2_in1k"``.
        weights: a local file in timm's format, or one that timm makes it of; None fetches what is
            published. A name without weights then has the normalisation of timm's default.
        size: input size; None takes the option ``img_size``, or the weights' own.
        options: further arguments of ``timm.create_model``, e.g. ``num_classes``.

    Returns:
        The predictor in evaluation mode: logits (B, K), or embeddings (B, D) of a CLIP.

    Raises:
        ValueError: for a name that timm does not know, options that the model does not take, a
            model that gives features and no classes, another number of classes than what is fetched
            has, or another number of channels than that of the published normalisation.
        CheckpointError: for weights that cannot be fetched, are damaged or of another network.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.4)
        raise ValueError(
            f"unknown predictor: timm has no {architecture!r}; its nearest names are "
            f"{', '.join(close) or 'none'}, all are in timm.list_models()"
        )
    try:
        with options_named("timm", architecture, options):
            network: Any = timm.create_model(name, pretrained=weights is None, **options)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"timm cannot make {name} with its weights ({one_line(error)}); give a local file, "
            f"or a name of timm.list_pretrained()"
        ) from error
    if getattr(network, "num_classes", None) == 0:
        raise ValueError(
            f"timm's {name} gives features and no classes; name weights that classify, or wrap the "
            "network in a ppap.Predictor with task=SimilarityTask()"
        )
    published = network.pretrained_cfg.get("num_classes")
    classes = options.get("num_classes", published)
    if weights is None and classes != published:
        raise ValueError(
            f"what is published for {name} has {published} classes, and timm would draw a last "
            f"layer of {classes} at random; give the file of one that was trained"
        )
    if weights is not None:
        check_and_load(network, _of_today(network, load_state(weights)), Path(weights).name)
    settings = resolve_model_data_config(network, use_test_size=True)  # type: ignore[no-untyped-call]
    if (channels := options.get("in_chans", len(settings["mean"]))) != len(settings["mean"]):
        raise ValueError(
            f"nothing is published on how to normalise images of {channels} channels for {name}; "
            "wrap the network in a ppap.Predictor with the mean and std that it was trained with"
        )
    if weights is not None and "." not in name:
        _tell_of_others(name, settings)
    embeds = "num_classes" not in options and _embeds(network)
    return Predictor(
        network.eval(),
        settings["mean"],
        settings["std"],
        size or made_for(options, "img_size") or tuple(settings["input_size"][1:]),
        f"timm/{name}",
        SimilarityTask() if embeds else ClassTask(),
    )


def _of_today(network: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights whose names are not the network's, as timm itself renames those that it fetches.

    Files of before a change of its architectures, and the authors' own, become what they are
    there. Whatever comes of it must fit as strictly.
    """
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    own = network.state_dict()
    found = fitted(own, state)
    if rename is None or own.keys() == found.keys():
        return state
    try:
        renamed: Mapping[str, Tensor] = rename(dict(found), network)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError):
        return state
    return renamed if own.keys() == renamed.keys() else state


def _tell_of_others(name: str, settings: Mapping[str, Any]) -> None:
    """Say that the weights in a file may be some that are normalised in another way."""
    import timm

    taken = [*settings["mean"], *settings["std"]]
    others = []
    for tagged in timm.list_pretrained(f"{name}.*"):
        config = timm.get_pretrained_cfg(tagged)
        if config and config.num_classes and [*config.mean, *config.std] != taken:
            others.append(tagged)
    if others:
        logger.warning(
            "%s are normalised in another way than the weights that timm means by %s, whose mean "
            "and std are taken; if the file is one of them, name it so",
            ", ".join(others),
            name,
        )


def _embeds(network: Any) -> bool:
    """Whether the numbers that weights are published for are an embedding's, as of a CLIP.

    timm counts them as classes in either case. Its data sets of classes are none of a width.
    """
    from timm.data.imagenet_info import infer_imagenet_subset

    published = network.pretrained_cfg.get("num_classes", 0)
    known = infer_imagenet_subset({"num_classes": published})
    return bool(published > 0 and known is None and published % HEAD_WIDTH == 0)
