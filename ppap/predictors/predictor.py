"""Predictors: off-the-shelf models with the preprocessing that they were trained with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.compute.exclusive import exclusive
from ppap.compute.modules import weights_dtype
from ppap.compute.options import check_whole
from ppap.tasks.classes import ClassTask
from ppap.tasks.protocol import Task

__all__ = ["Function", "Predictor"]


class Predictor(nn.Module):
    """A model behind its own preprocessing: image in [-1, 1] -> prediction.

    Args:
        network: any module or function that takes normalised images.
        mean: per channel, of images in [0, 1]; by default with ``std`` RGB images stay in [-1, 1].
        std: per channel, of images in [0, 1].
        size: (H, W) that the network wants; images of another size are resized, bilinearly
            and anti-aliased, differentiably. None leaves any size as it is.
        name: for records and saved banks.
        task: what predictions mean; classification by default.

    Raises:
        TypeError: for a network that cannot be called, or a mean or std that is a single number.
        ValueError: for a mean and std of different lengths or that are not finite, a mean that no
            images in [0, 1] have, a std that is not positive, a size that is none, and at the call
            for a wrong number of channels, or images that are no floating-point numbers.
    """

    network: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        size: tuple[int, int] | None = None,
        name: str = "",
        task: Task | None = None,
    ) -> None:
        super().__init__()
        for what, values in (("mean", mean), ("std", std)):
            if not isinstance(values, Iterable):
                raise TypeError(
                    f"{what} is a number per channel, such as ({values},), got {values}"
                )
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        finite = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != len(std) or not finite or not all(value > 0 for value in std):
            raise ValueError(f"mean {mean} and std {std} need one positive std per channel")
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError(
                f"mean {mean} is none of images in [0, 1]; divide mean and std by 255 if they are "
                "of images in [0, 255]"
            )
        if not callable(network):
            raise TypeError(f"a network is called with normalised images, got {network!r}")
        if size is not None:
            given: Any = size
            if not isinstance(given, Sequence) or len(given) != 2:
                raise ValueError(f"a size is (H, W), got {size}")
            for side in size:
                check_whole("a side of the size", side)
            size = int(size[0]), int(size[1])  # compared with shapes, which no list equals
        self.network = network if isinstance(network, nn.Module) else Function(network)
        self.size = size
        self.name = name or getattr(network, "__name__", type(network).__name__)
        self.task: Task = ClassTask() if task is None else task
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def prepare(self, images: Tensor, normalised: bool = True) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> what the network takes; differentiable.

        Without ``normalised`` they are resized only. They are in the type of the network's weights,
        if these have one. What is given is never the images themselves, for a network may compute
        in place.
        """
        if images.ndim != 4 or images.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"{self.name} takes (B, {self.mean.shape[1]}, H, W) images, "
                f"got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"{self.name} takes floating-point images in [-1, 1], got {images.dtype}; "
                "from_uint8 converts stored pixels"
            )
        given = images
        if self.size is not None and images.shape[2:] != self.size:
            images = F.interpolate(
                images, self.size, mode="bilinear", antialias=True, align_corners=False
            )
        if normalised:
            images = ((images + 1) / 2 - self.mean) / self.std
        shown = images.to(weights_dtype(self.network, images.dtype))
        return shown.clone() if shown is given else shown

    def showing_raw(self) -> Predictor:
        """The same network shown images in [-1, 1], resized only; its weights are shared."""
        raw = copy.copy(self)
        half = torch.full_like(self.mean, 0.5)
        raw._buffers = {**self._buffers, "mean": half, "std": half}
        return raw

    def forward(self, images: Tensor) -> Any:
        """The network's prediction for (B, C, H, W) images in [-1, 1]."""
        with exclusive(self.network):
            return self.network(self.prepare(images))


class Function(nn.Module):
    """A function of normalised images as a network; it has no weights that could be adapted."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)
