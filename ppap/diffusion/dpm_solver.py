"""DPM-Solver++ in its data-prediction form, multistep: Lu et al. (arXiv 2211.01095), algorithm 2.

With alpha = sqrt(abar), sigma = sqrt(1 - abar) and lambda = log(alpha / sigma), a step of size
h = lambda_next - lambda goes exactly along the predicted image and, at second order, along the
line through the last two predictions. It needs no noise, and far fewer steps than DDIM, which is
its first order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from ppap.compute.options import check_choice, check_whole
from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.gradient_entry import guided_prediction
from ppap.diffusion.schedule import Floats, Schedule
from ppap.diffusion.solver import Index, Update, gather

__all__ = ["DPMSolver", "TimestepSpacing"]

TimestepSpacing = Literal["linspace", "leading", "trailing"]


@dataclass(frozen=True)
class DPMSolver:
    """Deterministic sampling in few steps, each looking at the last two predictions.

    The last step is of first order and ends at the predicted image itself, so ``last`` may lie
    well above timestep 0: guided steps near the image change little.

    Attributes:
        steps: how many timesteps are visited.
        order: 2, or 1, which is DDIM.
        last: the lowest timestep that is visited; the others are spread evenly from the
            schedule's last one down to it, in at least 2 steps. By default ``timestep_spacing``
            decides.
        timestep_spacing: as in diffusers: ``"linspace"`` from the last timestep towards 0,
            which is not visited; ``"leading"``, multiples of a whole stride; ``"trailing"``,
            the same counted from the last timestep down.
        clip: whether the predicted image is clipped to [-1, 1] before guidance.

    Raises:
        TypeError: for ``steps`` or a ``last`` that is no whole number.
        ValueError: for no steps, another order or ``timestep_spacing``, or ``last`` together with
            one; on a schedule that has not so many steps from its last down to ``last``.
    """

    steps: int = 25
    order: Literal[1, 2] = 2
    last: int | None = None
    timestep_spacing: TimestepSpacing = "linspace"
    clip: bool = True

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)
        if self.last is not None:
            check_whole("last", self.last, 0)
        check_choice("timestep_spacing", self.timestep_spacing, get_args(TimestepSpacing))
        if self.order not in (1, 2):
            raise ValueError(f"DPM-Solver++ is there in orders 1 and 2, got {self.order}")
        if self.last is not None and self.timestep_spacing != "linspace":
            raise ValueError(f"last={self.last} leaves nothing to a timestep_spacing; omit one")

    @property
    def spacing(self) -> str:
        """Which timesteps are visited."""
        if self.last is not None:
            return f"{self.steps} to {self.last}"
        return f"{self.timestep_spacing}{self.steps}"

    @property
    def stochastic(self) -> bool:
        return False

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
        memory: Tensor | None = None,
    ) -> Update:
        """Equation 14; see :meth:`ppap.diffusion.solver.Sampler.step`.

        The memory is the image (B, C, H, W) that the step before went towards.
        """
        del noise
        kept, gain, lean = _coefficients(schedule)
        at = gather(index, x_t)
        x_0, _ = guided_prediction(schedule, at, x_t, prediction, gradient, self.clip)
        ahead = x_0
        if memory is not None and self.order == 2:
            ahead = x_0 + at(lean) * (x_0 - memory)
        return Update(at(kept) * x_t + at(gain) * ahead, x_0, gradient, x_0)


def _coefficients(schedule: Schedule) -> tuple[Floats, Floats, Floats]:
    """By index: the share of x_t that is kept, that of the image, and how far it leans ahead."""
    alpha, sigma = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
    alpha_next = np.sqrt(schedule.alphas_cumprod_prev)
    sigma_next = np.append(0.0, sigma[:-1])
    # exp(-h); 0 at index 0, where lambda becomes infinite: that step ends at the image.
    decay = sigma_next / sigma * alpha / alpha_next
    lean = np.zeros(len(schedule))
    sizes = np.diff(np.log(alpha / sigma)[::-1])[::-1]  # sizes[i]: from index i + 1 to i
    lean[1:-1] = 0.5 * sizes[:-1] / sizes[1:]  # h / (2 h_before)
    return sigma_next / sigma, alpha_next * (1 - decay), lean
