"""How far samples lie apart that ought to be the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LEVEL", "Moves", "moves"]

LEVEL = 2 / 255
"""One grey level of 255, of images in [-1, 1]."""


@dataclass(frozen=True)
class Moves:
    """How samples differ between two ways of drawing them.

    A sample's move is the largest difference of any of its pixels, in grey levels of 255.

    Attributes:
        samples: how many were compared.
        identical: how many are the same bit for bit.
        over: how many move by more than one grey level.
        median: move.
        largest: move.
    """

    samples: int
    identical: int
    over: int
    median: float
    largest: float

    @property
    def share_over(self) -> float:
        """Share of the samples that move by more than one grey level."""
        return self.over / self.samples


def moves(images: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> Moves:
    """Compare (N, C, H, W) images in [-1, 1] with others of the same seeds.

    Raises:
        ValueError: if the shapes differ, or there is nothing to compare.
    """
    if images.shape != others.shape or not len(images):
        raise ValueError(f"cannot compare images {images.shape} with {others.shape}")
    apart = np.abs(images.astype(np.float64) - others).reshape(len(images), -1).max(axis=1)
    each = apart / LEVEL
    return Moves(
        samples=len(each),
        identical=int((each == 0).sum()),
        over=int((each > 1).sum()),
        median=float(np.median(each)),
        largest=float(each.max()),
    )
