"""Predictors: off-the-shelf models with the preprocessing that they were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.checkpoints import check_and_load, load_state

__all__ = ["Predictor", "Taken", "load_predictor"]

TIMM_PREFIX = "timm/"


class Predictor(nn.Module):
    """A model behind its own preprocessing: image in [-1, 1] -> prediction.

    Args:
        network: any module that takes normalised images.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        size: (H, W) that the network wants; images of another size are resized, bilinearly
            and anti-aliased, differentiably. None leaves any size as it is.
        name: for records and saved banks.

    Raises:
        ValueError: for a mean and std of different lengths or a std that is not positive,
            and at the call for a wrong number of channels.
    """

    network: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean {mean} and std {std} need one positive std per channel")
        self.network = network
        self.size = size
        self.name = name or type(network).__name__
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def prepare(self, images: Tensor, normalised: bool = True) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> what the network takes; differentiable.

        Without ``normalised`` they are resized only.
        """
        if images.ndim != 4 or images.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"{self.name} takes (B, {self.mean.shape[1]}, H, W) images, "
                f"got {tuple(images.shape)}"
            )
        if self.size is not None and images.shape[2:] != self.size:
            images = F.interpolate(
                images, self.size, mode="bilinear", antialias=True, align_corners=False
            )
        return ((images + 1) / 2 - self.mean) / self.std if normalised else images

    def forward(self, images: Tensor) -> Any:
        """The network's prediction for (B, C, H, W) images in [-1, 1]."""
        return self.network(self.prepare(images))


class Taken(nn.Module):
    """A network of whose several outputs one is the prediction.

    E.g. ``Taken(deeplabv3_resnet50(...), "out")``, ``Taken(DPTForDepthEstimation(...),
    "predicted_depth")``.

    Args:
        network: returns a mapping, or an object with attributes.
        output: key or name of the one that is taken.
    """

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, images: Tensor) -> Any:
        found = self.network(images)
        return found[self.output] if isinstance(found, Mapping) else getattr(found, self.output)


def load_predictor(
    name: str,
    weights: str | Path | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Predictor:
    """A timm classifier with the normalisation and input size of its weights.

    Args:
        name: ``"timm/resnet50.tv2_in1k"``, ``"timm/deit_small_patch16_224"``, ...
        weights: a local checkpoint in timm's format; None fetches timm's own from the hub.
        size: input size; None takes the weights' own.
        options: further arguments of ``timm.create_model``, e.g. ``num_classes``.

    Returns:
        The predictor in evaluation mode.

    Raises:
        ValueError: for a name that is not ``timm/...`` or that timm does not know.
        CheckpointError: for weights that are damaged or of another network.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    architecture = name.removeprefix(TIMM_PREFIX)
    if architecture == name or not timm.is_model(architecture.split(".")[0]):
        raise ValueError(
            f"unknown predictor {name!r}; write timm/ and a name of timm.list_models()"
        )
    network = timm.create_model(architecture, pretrained=weights is None, **options)
    if weights is not None:
        check_and_load(network, load_state(weights), Path(weights).name)
    settings = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return Predictor(
        network.eval(),
        settings["mean"],
        settings["std"],
        size or tuple(settings["input_size"][1:]),
        name,
    )
