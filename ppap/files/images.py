"""Images as stored bytes and as what networks take."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Images", "from_uint8", "places_of", "to_uint8"]


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1], any shape, as rounded bytes in 0..255; what lies outside is clipped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


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
