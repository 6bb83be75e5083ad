"""Public predictors, by name: ``timm/...``, ``torchvision/...`` and ``transformers/...``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ppap.files.checkpoints import CheckpointError, one_line
from ppap.predictors.captions import text_targets
from ppap.predictors.predictor import Predictor
from ppap.predictors.preprocessing import SIDES
from ppap.predictors.timm_models import load_timm
from ppap.predictors.torchvision_models import load_torchvision
from ppap.predictors.transformers_models import load_transformers
from ppap.predictors.wrappers import MixedPrecision

__all__ = ["load_predictor", "text_targets"]


def load_predictor(
    name: str,
    weights: str | Path | None = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Predictor:
    """A public model with the normalisation and input size of its weights, on the CPU.

    Args:
        name: ``"timm/resnet50.tv2_in1k"``, a classifier of ``timm.list_models()`` or the
            tower of a CLIP that sees images;
            ``"torchvision/deeplabv3_resnet50"`` or ``"torchvision/resnet50:IMAGENET1K_V2"``, a
            classifier or segmenter of ``torchvision.models.list_models()`` and, if need be, the
            name of its weights; ``"transformers/Intel/dpt-hybrid-midas"``, a hub id or folder of
            a model of depth, class, segmentation or a CLIP in transformers' format.
        weights: a local file in the format of timm or torchvision, or for transformers a local
            folder; None fetches what is published.
        size: input size; None takes the weights' own.
        dtype: ``torch.bfloat16`` or ``torch.float16`` computes under autocast, see
            :class:`ppap.predictors.wrappers.MixedPrecision`.
        options: further arguments of timm's or torchvision's architecture, e.g. ``num_classes``.

    Returns:
        The predictor in evaluation mode. Its ``task`` says what it predicts: a
        :class:`ppap.tasks.classes.ClassTask`, a :class:`ppap.tasks.depth.DepthTask`, a
        :class:`ppap.tasks.segmentation.SegmentationTask` or, of a CLIP, a
        :class:`ppap.tasks.similarity.SimilarityTask`.

    Raises:
        ValueError: for a name that is unknown, or options or a size that the model does not take.
        CheckpointError: for weights that are missing, damaged, hostile or of another network.
        ImportError: for transformers without the extra ``public``.
    """
    kind, _, rest = name.partition("/")
    if kind == "timm" and rest:
        predictor = load_timm(rest, weights, size, **options)
    elif kind == "torchvision" and rest:
        predictor = load_torchvision(rest, weights, size, **options)
    elif kind == "transformers" and rest:
        if options:
            raise ValueError(
                f"a transformers model brings its own settings; leave out {', '.join(options)}"
            )
        predictor = load_transformers(weights or rest, size, name)
    else:
        raise ValueError(
            f"unknown predictor {name!r}; write timm/NAME of timm.list_models(), "
            "torchvision/NAME or torchvision/NAME:WEIGHTS of torchvision.models.list_models(), "
            "or transformers/HUB_ID or transformers/FOLDER of a depth, classification, "
            "segmentation or CLIP model"
        )
    if size is not None or options or kind == "transformers":
        _check_prediction(predictor.eval(), kind, size is not None)
    if dtype != torch.float32:
        predictor.network = MixedPrecision(predictor.network, dtype)
    return predictor.eval()


@torch.no_grad()
def _check_prediction(predictor: Predictor, kind: str, sized: bool) -> None:
    """Show the network one image, of whose prediction its task must be able to make a target.

    Args:
        predictor: that was loaded.
        kind: the library that it is of.
        sized: whether its size was asked for, which may not be its weights' own.
    """
    height, width = predictor.size or (SIDES[0], SIDES[0])
    example = torch.zeros(1, predictor.mean.shape[1], height, width)
    try:
        predictor.task.target(predictor(example))
    except Exception as error:  # networks raise whatever they like
        said = one_line(error)
        if not sized:
            raise CheckpointError(
                f"{predictor.name} makes nothing of an image of {height} x {width} ({said}); "
                "look at its options, its configuration and its preprocessing"
            ) from error
        resampled = " or, for a ViT, add dynamic_img_size=True" if kind == "timm" else ""
        raise ValueError(
            f"{predictor.name} takes no images of {height} x {width} ({said}); leave size out "
            f"for that of its weights{resampled}"
        ) from error
