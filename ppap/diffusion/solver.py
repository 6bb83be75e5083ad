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
from ppap.diffusion.schedule import Floats, Schedule

__all__ = ["Index", "Sampler", "Table", "Update", "gather"]

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


def gather(index: Index, like: Tensor) -> Callable[[Table], Tensor]:
    """Reads a table of the schedule at the index, shaped to multiply images like ``like``."""

    def at(table: Table) -> Tensor:
        values = torch.as_tensor(table)
        if isinstance(index, int):
            return values[index].to(device=like.device, dtype=like.dtype)
        rows = values[index.cpu()]
        return rows.to(device=like.device, dtype=like.dtype)[:, None, None, None]

    return at
