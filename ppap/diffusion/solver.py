"""What a solver is: the update from one noise level to the next.

A sampler is a solver with a choice of timesteps. It knows nothing of experts or predictors: a
step takes a gradient if there is one (:mod:`ppap.diffusion.gradient_entry`). What a multistep
method remembers of earlier steps goes in and out explicitly and is kept per sample, so that a
sample depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.schedule import Floats, Schedule

__all__ = ["Index", "Sampler", "Stepper", "Table", "Update", "gather", "plain_step"]

Index = int | Tensor
Table = Floats | npt.NDArray[np.float32] | Tensor


@dataclass(frozen=True)
class Update:
    """What a step gives.

    Attributes:
        x: (B, C, H, W) at the next lower index of the schedule.
        x_0: (B, C, H, W), the image that the step went towards.
        gradient: (B, C, H, W), what guided it; None if nothing did.
        memory: what the sampler wants to see again at the next step; None for a method that
            looks at the present step alone.
    """

    x: Tensor
    x_0: Tensor
    gradient: Tensor | None = None
    memory: Any = None


class Sampler(Protocol):
    """A choice of timesteps and of the step between them."""

    @property
    def stochastic(self) -> bool:
        """Whether a step needs noise."""
        ...

    def respace(self, schedule: Schedule, /) -> Schedule:
        """The timesteps that are visited, of a full schedule."""
        ...

    def step(
        self,
        schedule: Schedule,
        index: Index,
        x_t: Tensor,
        prediction: Prediction,
        gradient: Tensor | None = None,
        noise: Tensor | None = None,
        memory: Any = None,
    ) -> Update:
        """One step, guided if there is a gradient.

        Args:
            schedule: the respaced schedule.
            index: position in it, an int or (B,) int64 for a batch of mixed timesteps.
            x_t: (B, C, H, W) noisy images.
            prediction: the denoiser's for ``x_t``.
            gradient: (B, C, H, W), scale times the gradient of the log-likelihood in x_t.
            noise: (B, C, H, W) standard normal, if the sampler is stochastic.
            memory: of this batch's step before; None at the first.

        Raises:
            ValueError: if noise is needed and there is none.
        """
        ...


class Stepper(Protocol):
    """One way to compute a guided step: plainly, or as :mod:`ppap.fast` does."""

    def __call__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        state: State,
        guide: Guide | None,
        noise: Tensor | None,
        memory: Any,
        /,
    ) -> Update:
        """As :meth:`Sampler.step`, of the state's batch; the guide's targets are the batch's."""
        ...


def plain_step(
    sampler: Sampler,
    schedule: Schedule,
    index: int,
    state: State,
    guide: Guide | None,
    noise: Tensor | None,
    memory: Any,
    /,
) -> Update:
    """The step as it is defined; every other way must agree with it up to rounding."""
    # The guide comes first: if it differentiates the denoiser, its forward pass serves the step.
    gradient = None if guide is None else guide(state)
    return sampler.step(schedule, index, state.x_t, state.prediction(), gradient, noise, memory)


def gather(index: Index, like: Tensor) -> Callable[[Table], Tensor]:
    """Reads a table of the schedule at the index, shaped to multiply images like ``like``."""

    def at(table: Table) -> Tensor:
        values = torch.as_tensor(table)
        if isinstance(index, int):
            return values[index].to(device=like.device, dtype=like.dtype)
        rows = values[index.cpu()]
        return rows.to(device=like.device, dtype=like.dtype)[:, None, None, None]

    return at
