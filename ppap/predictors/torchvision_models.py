"""Classifiers and semantic segmenters of torchvision, by name, with the weights it publishes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from ppap.files.checkpoints import CheckpointError, check_and_load, load_state, one_line
from ppap.predictors.model_options import made_for, options_named
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import SelectOutput
from ppap.tasks.classes import ClassTask
from ppap.tasks.segmentation import SegmentationTask

__all__ = ["load_torchvision"]

AUXILIARY_HEADS = ("aux_classifier", "aux1", "aux2", "AuxLogits")
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")


def load_torchvision(
    name: str,
    weights: str | Path | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Predictor:
    """A classifier or segmenter of torchvision with the preprocessing of its weights.

    The heads that help to train some networks (DeepLab's and FCN's ``aux_classifier``, those of
    GoogLeNet and Inception) are in their published files and must be whole, but are taken off
    afterwards, as a prediction does not need them. A segmenter gives its ``"out"``.

    Args:
        name: of the architecture, and after a colon or dot that of the weights, e.g.
            ``"resnet50:IMAGENET1K_V2"``; by default torchvision's ``DEFAULT``.
        weights: a local file in torchvision's format, of the network that the name means; None
            fetches the published one.
        size: input size; None takes that of the options (``image_size`` of a ViT), or the weights'
            own: the side of the crop, to which the whole image is resized, or for a segmenter that
            of the short side.
        options: further arguments of the architecture, e.g. ``num_classes``.

    Returns:
        The predictor in evaluation mode: logits (B, K) or (B, K, H, W).

    Raises:
        ValueError: for a name that torchvision does not know, or options that the model does not
            take.
        CheckpointError: for weights that cannot be fetched, are damaged or of another network.
    """
    from torchvision import models

    architecture, _, chosen = name.replace(".", ":").partition(":")
    segmenters = models.list_models(models.segmentation)
    known = [*models.list_models(models), *segmenters]
    if architecture not in known:
        close = get_close_matches(architecture, known, n=4, cutoff=0.4)
        raise ValueError(
            f"torchvision has no classifier or segmenter {architecture!r}; its nearest names are "
            f"{', '.join(close or known[:4])}, all are in torchvision.models.list_models()"
        )
    versions = models.get_model_weights(architecture)
    names = [version.name for version in versions if version.meta["categories"]]
    if (chosen or "DEFAULT") not in (*names, "DEFAULT"):
        raise ValueError(
            f"{architecture} has no weights {chosen!r}; choose from {', '.join(names)}, DEFAULT"
        )
    version = versions[chosen or "DEFAULT"]
    published = _published_options(architecture, version)
    with options_named("torchvision", architecture, options):
        network = models.get_model(architecture, **published | options)
    path = _fetched(version.url) if weights is None else Path(weights)
    check_and_load(network, _of_today(load_state(path)), path.name)
    for head in AUXILIARY_HEADS:
        if hasattr(network, head):
            setattr(network, head, None)
            network.aux_logits = False
    preset = version.transforms()
    (side,) = getattr(preset, "crop_size", preset.resize_size)
    segments = architecture in segmenters
    return Predictor(
        (SelectOutput(network, "out") if segments else network).eval(),
        preset.mean,
        preset.std,
        size or made_for(options, "image_size", "input_size") or (side, side),
        f"torchvision/{name}",
        SegmentationTask() if segments else ClassTask(),
    )


def _published_options(architecture: str, version: Any) -> dict[str, Any]:
    """Arguments that make the network for which the weights were published."""
    from torchvision import models

    takes = inspect.signature(models.get_model_builder(architecture)).parameters
    options: dict[str, Any] = {"weights": None, "num_classes": len(version.meta["categories"])}
    if "weights_backbone" in takes:
        options["weights_backbone"] = None
    if "aux_loss" in takes:
        options["aux_loss"] = True
    if architecture in ("googlenet", "inception_v3"):
        options |= {"aux_logits": True, "transform_input": True, "init_weights": False}
    if architecture.startswith("vit_"):
        options["image_size"] = version.meta["min_size"][0]
    if architecture == "maxvit_t":
        options["input_size"] = version.meta["min_size"]
    return options


def _of_today(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of files older than the names of DenseNet's layers."""
    return {OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}


def _fetched(url: str) -> Path:
    """Where torch's hub keeps a file, which is fetched if need be."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = HASH_IN_NAME.search(path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), digest and digest.group(1), progress=False)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} cannot be fetched ({one_line(error)}); fetch {url} and give its path"
        ) from error
    return path
