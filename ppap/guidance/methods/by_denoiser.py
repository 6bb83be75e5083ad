"""What methods have in common that guide by another denoiser instead of a likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from ppap.diffusion.denoiser import Denoiser
from ppap.guidance.methods.base import Method
from ppap.guidance.scale import Scale, checked_scale, scale_count, scale_rows

__all__ = ["DenoiserMethod"]


@dataclass(frozen=True, eq=False)
class DenoiserMethod(Method):
    """A method that compares the sampled denoiser with another.

    Attributes:
        other: of the same images, on any schedule of the same timesteps.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.

    Raises:
        ValueError: for a scale that is not finite, or another number of scales than of the
            denoiser's conditions.
    """

    other: Denoiser
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        checked = checked_scale(self.scale, self.other.condition_count)
        object.__setattr__(self, "scale", checked)

    @property
    def target_count(self) -> int | None:
        """How many samples the denoiser's conditions are for; None if any number."""
        count = self.other.condition_count
        return scale_count(self.scale) if count is None else count

    def to(self, device: torch.device | str) -> None:
        """Move the denoiser."""
        self.other.to(device)

    def rows(self, chosen: slice) -> Self:
        """The guide of some of the samples."""
        return replace(self, other=self.other.rows(chosen), scale=scale_rows(self.scale, chosen))
