"""Images as stored bytes and as what networks take."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = [
    "Images",
    "NonFiniteError",
    "check_finite",
    "check_images",
    "finite_rows",
    "from_uint8",
    "places_of",
    "to_uint8",
]


class NonFiniteError(ValueError):
    """NaN or infinity where numbers are wanted; as bytes they would look like pixels."""


def finite_rows(values: Tensor) -> Tensor:
    """(N,) which rows of (N, ...) values hold neither NaN nor infinity."""
    return values.isfinite().flatten(1).all(dim=1) if values.ndim > 1 else values.isfinite()


def check_finite(values: Any, what: str) -> None:
    """Refuse NaN and infinity.

    Args:
        values: (N, ...), or several such in a list, a tuple or a dictionary.
        what: they are, for the message, in the singular.

    Raises:
        NonFiniteError: naming the first row that has any.
    """
    for part in tree_leaves(values):
        if not isinstance(part, Tensor):
            continue
        wrong = (~finite_rows(part if part.ndim else part[None])).nonzero()[:, 0].tolist()
        if not wrong:
            continue
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise NonFiniteError(f"{what} of row {wrong[0]}{more} is not finite")


def check_images(images: Tensor) -> None:
    """Refuse what is no images as networks take them, such as stored bytes.

    Args:
        images: (N, C, H, W) floating-point in [-1, 1], N at least 1; a hair beyond is rounding.

    Raises:
        ValueError: for no images, another shape, another type or another range.
    """
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"expected float (N, C, H, W) images, at least one, got {images.dtype} "
            f"{tuple(images.shape)}; from_uint8 converts stored pixels"
        )
    low, high = images.aminmax()  # NaN if any is, and without a copy of all images
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError("images leave [-1, 1]; rescale or clamp them first")


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1], any shape, as rounded bytes in 0..255; what lies outside is clipped.

    The one place where pixels become bytes, of which half precision keeps every one.

    Raises:
        NonFiniteError: for NaN or infinity, which would become a black or white pixel.
        ValueError: for images that are no floating-point numbers, such as bytes.
    """
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point images in [-1, 1], got {images.dtype}")
    check_finite(images[None] if images.ndim == 0 else images, "the image")
    wide = images.float() if images.dtype.itemsize < 4 else images
    return ((wide.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Bytes in 0..255, any shape, as float32 images in [-1, 1].

    Raises:
        ValueError: for another dtype.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}")
    return images.float() / 127.5 - 1


class Images(Protocol):
    """Images (N, C, H, W) uint8, of which some are read at a time."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """(B, C, H, W) of a slice of them or of (B,) int64 places."""


def places_of(chosen: slice | Tensor, count: int) -> Tensor:
    """(B,) int64 of a slice of ``count`` places, or of places as they are."""
    return torch.arange(*chosen.indices(count)) if isinstance(chosen, slice) else chosen
