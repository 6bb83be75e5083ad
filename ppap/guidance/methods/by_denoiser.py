"""What methods have in common that guide by another denoiser instead of a likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.noise_levels import NoiseLevels
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.methods.base import Method
from ppap.guidance.scale import Scale, checked_scale, scale_count, scale_rows

__all__ = ["DenoiserMethod"]


@dataclass(frozen=True, eq=False)
class DenoiserMethod(Method):
    """A method that compares the sampled denoiser with another.

    Attributes:
        other: of the same images, made for the same noise: it is asked at the same timesteps.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.

    Raises:
        NoiseLevelsError: at a step, for a denoiser that was made for another noise schedule.
        TypeError: for what is no denoiser.
        ValueError: for a scale that is not finite, or another number of scales than of the
            denoiser's conditions.
    """

    other: Denoiser
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.other, Denoiser):
            raise TypeError(
                f"{type(self).__name__} guides by another ppap.Denoiser(network, schedule, shape), "
                f"got {type(self.other).__name__}"
            )
        checked = checked_scale(self.scale, self.other.condition_count)
        object.__setattr__(self, "scale", checked)

    def step(self, step: SamplingStep) -> Update:
        """As every method's, of two denoisers made for the same noise."""
        sampled = step.state.denoiser.schedule
        same: set[Schedule] = step.state.memory.setdefault(DenoiserMethod, {sampled})
        if self.other.schedule not in same:  # compared once a trajectory
            NoiseLevels.of(self.other.schedule).check(sampled, "the denoiser that guides")
            same.add(self.other.schedule)
        return super().step(step)

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
