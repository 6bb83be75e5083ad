"""What pixels alone say of images: features that no label has shaped, and saturation.

A classifier's features, such as those that FID is usually taken of, are blind to what its classes
do not need: guidance can paint garments white while FID falls. The principal components of the
pixels see it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

from ppap.compute.options import check_whole
from ppap.evaluation.features import Features
from ppap.files.images import check_images, from_uint8

__all__ = ["PixelComponents", "Saturation", "saturation"]

COMPONENTS = 64
GREY_LEVEL = 2 / 255
"""Of an image in [-1, 1]."""
READ_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class PixelComponents:
    """Projects images on principal components of the pixels of others: a feature extractor.

    Distances are those of the pixels, as far as the components see them: nothing is whitened.

    Attributes:
        name: of the extractor, a new one for the components of other images.
        mean: (P,) float64, of the images that it was fitted on.
        components: (D, P) float64, orthonormal rows, that of the largest variance first.
        shape: (C, H, W), P values, of the images that are projected; larger ones are averaged
            down to it.

    Raises:
        ValueError: unless these fit together; in use, for images of other channels, smaller ones,
            or integers that are no bytes.
    """

    name: str
    mean: Tensor
    components: Tensor
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        size = int(np.prod(self.shape))
        if self.mean.shape != (size,) or self.components.shape[1:] != (size,):
            raise ValueError(
                f"images of shape {self.shape} have a mean ({size},) and components (D, {size}), "
                f"got {tuple(self.mean.shape)} and {tuple(self.components.shape)}"
            )

    @staticmethod
    def fit(
        images: Tensor, components: int = COMPONENTS, name: str = "", most: int = 32
    ) -> PixelComponents:
        """The components of largest variance, each with its largest entry positive.

        Args:
            images: (N, C, H, W) in [-1, 1], or uint8.
            components: D, how many.
            name: of the extractor; by default ``pixels-D-`` and a digest of the mean image, so that
                statistics that others' components have made are not taken for its own.
            most: pixels of a side, to which larger images are averaged down.

        Raises:
            ValueError: for images of another shape, type or range, or fewer than D + 1 of them,
                or of their values than D.
        """
        check_whole("components", components)
        if images.dtype != torch.uint8 or images.ndim != 4:
            check_images(images)
        height, width = (min(side, most) for side in images.shape[2:])
        shape = (images.shape[1], height, width)
        rows = torch.cat([_rows(part, shape) for part in torch.split(images, READ_AT_ONCE)])
        count, size = rows.shape
        if not 1 <= components <= min(count - 1, size):
            raise ValueError(
                f"{count} images of {size} values have 1 to {min(count - 1, size)} components, "
                f"got {components}; give more images or ask for fewer"
            )
        mean = rows.mean(0)
        found = _leading(rows - mean, components)
        largest = found.gather(1, found.abs().argmax(1, keepdim=True))
        name = name or f"pixels-{components}-{_digest(mean)}"
        return PixelComponents(name, mean, found * largest.sign(), shape)

    def __call__(self, images: Tensor) -> Features:
        """(N, D) float64 projections; there are no classes, so logits are a column of zeros."""
        if images.ndim != 4 or any(
            a < b for a, b in zip(images.shape[1:], self.shape, strict=True)
        ):
            raise ValueError(
                f"expected (N, C, H, W) images of at least {self.shape}, got {tuple(images.shape)}"
            )
        rows = _rows(images, self.shape)
        seen = (rows - self.mean.to(rows)) @ self.components.to(rows).T
        return Features(seen, seen.new_zeros(len(seen), 1), self.name)


def _digest(mean: Tensor) -> str:
    """The same on any machine: rounding is far from the digits that count."""
    return hashlib.sha256((mean.cpu().numpy().round(4) + 0.0).tobytes()).hexdigest()[:8]


def _rows(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(N, P) float64 pixels in [-1, 1]."""
    values = (images if images.is_floating_point() else from_uint8(images)).double()
    if values.shape[1] != shape[0]:
        raise ValueError(f"expected images of {shape[0]} channels, got {values.shape[1]}")
    return F.adaptive_avg_pool2d(values, shape[1:]).flatten(1)


def _leading(centred: Tensor, count: int) -> Tensor:
    """(count, P) right singular vectors of an (N, P) matrix, by the smaller of its two squares."""
    rows, size = centred.shape
    wide = rows < size
    square = centred @ centred.T if wide else centred.T @ centred
    last = len(square) - 1
    _, vectors = eigh(square.numpy(), subset_by_index=(last + 1 - count, last))
    found = torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1].T))
    if wide:
        found = found @ centred
        # Once more orthonormal: directions of hardly any variance lose it in the square.
        found = torch.linalg.qr(found.T).Q.T
    return found


@dataclass(frozen=True)
class Saturation:
    """Shares of pixel values at the ends of their range, within one grey level.

    Attributes:
        low: at the dark end.
        high: at the bright end.
    """

    low: float
    high: float

    @property
    def both(self) -> float:
        """At either end."""
        return self.low + self.high


def saturation(images: Tensor) -> Saturation:
    """How much of images is as dark or as bright as can be.

    Args:
        images: (N, C, H, W) in [-1, 1], or uint8.

    Raises:
        ValueError: for no images, such that leave [-1, 1], or integers that are no bytes.
    """
    values = images if images.is_floating_point() else from_uint8(images)
    if not values.numel() or not values.abs().amax() <= 1.001:
        raise ValueError("expected images in [-1, 1], at least one; rescale or clamp them first")
    distance = 1 - values.double().abs()
    # Half a level more: rounding puts a value that was a byte beside its level.
    ends = distance < 1.5 * GREY_LEVEL
    low = (ends & (values < 0)).double().mean()
    return Saturation(float(low), float((ends & (values > 0)).double().mean()))
