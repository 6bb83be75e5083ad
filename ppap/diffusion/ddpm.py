"""Ancestral sampling: DDPM, Ho et al. (arXiv 2006.11239), with learned variance or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from ppap.compute.options import check_choice
from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.gradient_entry import guided_mean
from ppap.diffusion.schedule import Floats, Schedule, check_spacing
from ppap.diffusion.solver import Index, Table, Update, gather

__all__ = ["DDPM", "FixedVariance", "ancestral_variance", "step_variance"]

FixedVariance = Literal["large", "small"]


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling over evenly spaced timesteps.

    Attributes:
        steps: how many of the schedule's timesteps are visited; or a spacing in words, as
            :meth:`ppap.diffusion.schedule.Schedule.respace` reads it.
        fixed_variance: ``"large"`` (beta) or ``"small"`` (the posterior's), for denoisers
            without learned variance.
        clip: whether the predicted image is clipped to [-1, 1].

    Raises:
        TypeError: for steps that are neither a whole number nor a spacing in words.
        ValueError: for no steps, a spacing that says nothing, or another ``fixed_variance``.
    """

    steps: int | str = 250
    fixed_variance: FixedVariance = "large"
    clip: bool = True

    def __post_init__(self) -> None:
        check_spacing(self.steps)
        check_choice("fixed_variance", self.fixed_variance, get_args(FixedVariance))

    @property
    def spacing(self) -> str:
        """Which timesteps are visited."""
        return str(self.steps)

    @property
    def stochastic(self) -> bool:
        return True

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
        """Equation 7's mean, moved by variance times gradient, and noise except at index 0.

        See :meth:`ppap.diffusion.solver.Sampler.step`. The update's ``x_0`` is the prediction
        before guidance, for here the gradient enters the mean.

        Raises:
            ValueError: if there is no noise.
        """
        if noise is None:
            raise ValueError("DDPM steps need noise")
        level, before = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
        betas = schedule.betas
        at = gather(index, x_t)
        x_0 = at(np.sqrt(1 / level)) * x_t - at(np.sqrt(1 / level - 1)) * prediction.epsilon
        if self.clip:
            x_0 = x_0.clamp(-1, 1)
        towards_image = betas * np.sqrt(before) / (1 - level)
        towards_noise = (1 - before) * np.sqrt(1 - betas) / (1 - level)
        mean = at(towards_image) * x_0 + at(towards_noise) * x_t
        variance, log_variance = ancestral_variance(
            schedule, at, prediction.variance_fraction, self.fixed_variance
        )
        mean = guided_mean(mean, variance, gradient)
        inner = np.append(0.0, np.ones(len(schedule) - 1))
        x_next = mean + at(inner) * (0.5 * log_variance).exp() * noise
        return Update(x_next, x_0, gradient)


def step_variance(
    schedule: Schedule, index: int, fixed_variance: FixedVariance
) -> tuple[float, float]:
    """Variance of an ancestral step that is not learned, and its logarithm.

    They part at index 0 of ``"small"``, where the variance is 0.
    """
    variance, log_variance = _fixed_variance(schedule, fixed_variance)
    return float(variance[index]), float(log_variance[index])


def ancestral_variance(
    schedule: Schedule,
    at: Callable[[Table], Tensor],
    fraction: Tensor | None,
    fixed_variance: FixedVariance,
) -> tuple[Tensor, Tensor]:
    """Variance of an ancestral step, and its logarithm.

    Args:
        schedule: the respaced schedule.
        at: reads its tables at the step's index (:func:`ppap.diffusion.solver.gather`).
        fraction: (B, C, H, W), the denoiser's, if it has learned the variance.
        fixed_variance: which one it has otherwise.
    """
    if fraction is not None:
        # The network's output in [-1, 1] interpolates between the two (Improved DDPM, eq. 15).
        weight = (fraction + 1) / 2
        high, low = at(np.log(schedule.betas)), at(schedule.posterior_log_variance)
        learned = weight * high + (1 - weight) * low
        return learned.exp(), learned
    variance, log_variance = _fixed_variance(schedule, fixed_variance)
    return at(variance), at(log_variance)


def _fixed_variance(schedule: Schedule, kind: FixedVariance) -> tuple[Floats, Floats]:
    small = schedule.posterior_log_variance
    if kind == "small":
        return schedule.posterior_variance, small
    # The published "large" variance borrows the posterior's at index 0, where beta is too much.
    large = np.append(np.exp(small[:1]), schedule.betas[1:])
    return large, np.log(large)
