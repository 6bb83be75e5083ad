"""DDIM: Song et al. (arXiv 2010.02502)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ppap.compute.options import check_number
from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.gradient_entry import guided_prediction
from ppap.diffusion.schedule import Schedule, check_spacing
from ppap.diffusion.solver import Index, Update, gather

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM:
    """Deterministic (``eta=0``) or partly stochastic sampling.

    Attributes:
        steps: how many of the schedule's timesteps are visited, at a fixed stride from
            timestep 0 (25 of 1000 is possible); or a spacing in words, as
            :meth:`ppap.diffusion.schedule.Schedule.respace` reads it, such as ``"fast27"``,
            or ``"8 to 80"``: so many steps evenly down to timestep 80, and from there
            straight to the predicted image.
        eta: noise level, 0 for none, 1 for that of DDPM (equation 16).
        clip: whether the predicted image is clipped to [-1, 1] before guidance.

    Raises:
        TypeError: for steps that are neither a whole number nor a spacing in words.
        ValueError: for no steps, a spacing that says nothing, or an ``eta`` outside [0, 1].
    """

    steps: int | str = 25
    eta: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        check_spacing(self.steps)
        check_number("eta", self.eta, 0, 1)

    @property
    def spacing(self) -> str:
        """Which timesteps are visited."""
        return self.steps if isinstance(self.steps, str) else f"ddim{self.steps}"

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def respace(self, schedule: Schedule) -> Schedule:
        return schedule.respace(self.spacing)

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
        """Equation 12, with sigma of equation 16; see :meth:`ppap.diffusion.solver.Sampler.step`.

        Raises:
            ValueError: if ``eta > 0`` and there is no noise.
        """
        if self.eta > 0 and noise is None:
            raise ValueError("DDIM with eta > 0 needs noise")
        # The published code takes differences from 1 in float32, and so do we: at low noise
        # their rounding moves a trajectory. The roots are NumPy's, correctly rounded on every
        # machine: torch's are off by the last bit on some, which moves 250 steps by 4e-5.
        level = schedule.alphas_cumprod.astype(np.float32)
        before = schedule.alphas_cumprod_prev.astype(np.float32)
        sigma = self.eta * np.sqrt((1 - before) / (1 - level)) * np.sqrt(1 - level / before)
        direction = np.sqrt(1 - before - sigma**2)
        at = gather(index, x_t)
        x_0, epsilon = guided_prediction(schedule, at, x_t, prediction, gradient, self.clip)
        x_next = at(np.sqrt(before)) * x_0 + at(direction) * epsilon
        if noise is not None and self.eta > 0:
            x_next = x_next + at(sigma) * noise
        return Update(x_next, x_0, gradient)
