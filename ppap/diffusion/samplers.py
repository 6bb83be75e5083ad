"""DDPM and DDIM as pure step functions, and the one loop that runs them.

Samplers know nothing of experts or predictors: a step takes a guidance gradient if there is
one. DDPM: Ho et al. (arXiv 2006.11239). DDIM: Song et al. (arXiv 2010.02502). Where the
gradient enters: Dhariwal & Nichol (arXiv 2105.05233), algorithms 1 and 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ppap.diffusion.denoiser import Denoiser, Prediction, module_device
from ppap.diffusion.schedule import Floats, Schedule
from ppap.diffusion.streams import NoiseStreams
from ppap.guidance.guides import Guide

__all__ = [
    "DDIM",
    "DDPM",
    "Sampler",
    "Stepper",
    "ddim_step",
    "ddpm_step",
    "sample",
    "step_variance",
    "trajectory",
]

Index = int | Tensor
Table = Floats | Tensor
FixedVariance = Literal["large", "small"]


class Sampler(Protocol):
    """A choice of timesteps and of the step between them."""

    @property
    def spacing(self) -> str:
        """Which timesteps are visited, as ``Schedule.respace`` reads it."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether a step needs noise."""
        ...

    def step(
        self,
        schedule: Schedule,
        index: Index,
        x_t: Tensor,
        prediction: Prediction,
        gradient: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        """x at the next lower index of the respaced schedule."""
        ...


class Stepper(Protocol):
    """Another way to compute the steps of a trajectory, to the same images up to rounding."""

    def step(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        x_t: Tensor,
        guide: Guide | None,
        noise: Tensor | None,
    ) -> Tensor:
        """x at the next lower index of the respaced schedule, guided if there is a guide."""
        ...


@dataclass(frozen=True)
class DDIM:
    """Deterministic (``eta=0``) or partly stochastic sampling with a fixed stride.

    Attributes:
        steps: how many of the schedule's timesteps are visited, reachable by an integer
            stride (25 of 1000 is); or a spacing in words, such as ``"fast27"``.
        eta: noise level, 0 for none, 1 for that of DDPM (DDIM, equation 16).
        clip: whether the predicted image is clipped to [-1, 1] before guidance.
    """

    steps: int | str = 25
    eta: float = 0.0
    clip: bool = True

    @property
    def spacing(self) -> str:
        return self.steps if isinstance(self.steps, str) else f"ddim{self.steps}"

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(
        self,
        schedule: Schedule,
        index: Index,
        x_t: Tensor,
        prediction: Prediction,
        gradient: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        return ddim_step(
            schedule,
            index,
            x_t,
            prediction,
            gradient=gradient,
            eta=self.eta,
            noise=noise,
            clip=self.clip,
        )


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling over evenly spaced timesteps.

    Attributes:
        steps: how many of the schedule's timesteps are visited.
        fixed_variance: ``"large"`` (beta) or ``"small"`` (the posterior's), for denoisers
            without learned variance.
        clip: whether the predicted image is clipped to [-1, 1].
    """

    steps: int = 250
    fixed_variance: FixedVariance = "large"
    clip: bool = True

    @property
    def spacing(self) -> str:
        return str(self.steps)

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self,
        schedule: Schedule,
        index: Index,
        x_t: Tensor,
        prediction: Prediction,
        gradient: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        return ddpm_step(
            schedule,
            index,
            x_t,
            prediction,
            gradient=gradient,
            noise=noise,
            clip=self.clip,
            fixed_variance=self.fixed_variance,
        )


def ddim_step(
    schedule: Schedule,
    index: Index,
    x_t: Tensor,
    prediction: Prediction,
    *,
    gradient: Tensor | None = None,
    eta: float = 0.0,
    noise: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """One DDIM step, guided if there is a gradient.

    Guidance follows the published order: the predicted image is clipped, the noise implied
    by it is shifted by -sqrt(1 - abar) gradient, and the image is predicted again from the
    shifted noise, not clipped a second time.

    Args:
        schedule: the respaced schedule.
        index: position in it, an int or (B,) int64 for a batch of mixed timesteps.
        x_t: (B, C, H, W) noisy images.
        prediction: the denoiser's for ``x_t``.
        gradient: (B, C, H, W), scale times the gradient of the log-likelihood in x_t.
        eta: noise level (DDIM, equation 16).
        noise: (B, C, H, W) standard normal; needed if ``eta > 0``.
        clip: whether the predicted image is clipped to [-1, 1].

    Returns:
        (B, C, H, W) images at the next lower index.

    Raises:
        ValueError: if ``eta > 0`` and there is no noise.
    """
    if eta > 0 and noise is None:
        raise ValueError("DDIM with eta > 0 needs noise")
    level, before = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    # The published code takes differences from 1 in float32, and so do we: at low noise their
    # rounding moves a trajectory. The roots are NumPy's, correctly rounded on every machine:
    # torch's are off by the last bit on some, which moves 250 steps by 4e-5.
    level_32, before_32 = level.astype(np.float32), before.astype(np.float32)
    sigma = eta * np.sqrt((1 - before_32) / (1 - level_32)) * np.sqrt(1 - level_32 / before_32)
    direction = np.sqrt(1 - before_32 - sigma**2)
    at = _gather(index, x_t)
    scaled = at(np.sqrt(1 / level)) * x_t
    ratio = at(np.sqrt(1 / level - 1))
    x_0 = scaled - ratio * prediction.epsilon
    if clip:
        x_0 = x_0.clamp(-1, 1)
    epsilon = (scaled - x_0) / ratio
    if gradient is not None:
        epsilon = epsilon - at(np.sqrt(1 - level_32)) * gradient
        x_0 = scaled - ratio * epsilon
        epsilon = (scaled - x_0) / ratio
    x_next = at(np.sqrt(before_32)) * x_0 + at(direction) * epsilon
    if noise is None or eta == 0:
        return x_next
    return x_next + at(sigma) * noise


def ddpm_step(
    schedule: Schedule,
    index: Index,
    x_t: Tensor,
    prediction: Prediction,
    *,
    gradient: Tensor | None = None,
    noise: Tensor | None = None,
    clip: bool = True,
    fixed_variance: FixedVariance = "large",
) -> Tensor:
    """One ancestral step, guided if there is a gradient: mean + variance gradient + noise.

    Args:
        schedule: the respaced schedule.
        index: position in it, an int or (B,) int64 for a batch of mixed timesteps.
        x_t: (B, C, H, W) noisy images.
        prediction: the denoiser's for ``x_t``.
        gradient: (B, C, H, W), scale times the gradient of the log-likelihood in x_t.
        noise: (B, C, H, W) standard normal; without effect at index 0.
        clip: whether the predicted image is clipped to [-1, 1].
        fixed_variance: used unless the denoiser learned its variance.

    Returns:
        (B, C, H, W) images at the next lower index.

    Raises:
        ValueError: if there is no noise.
    """
    if noise is None:
        raise ValueError("DDPM steps need noise")
    level, before = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    betas = schedule.betas
    at = _gather(index, x_t)
    x_0 = at(np.sqrt(1 / level)) * x_t - at(np.sqrt(1 / level - 1)) * prediction.epsilon
    if clip:
        x_0 = x_0.clamp(-1, 1)
    towards_image = betas * np.sqrt(before) / (1 - level)
    towards_noise = (1 - before) * np.sqrt(1 - betas) / (1 - level)
    mean = at(towards_image) * x_0 + at(towards_noise) * x_t
    variance, log_variance = _variance(schedule, at, prediction.variance_fraction, fixed_variance)
    if gradient is not None:
        mean = mean + variance * gradient
    inner = np.append(0.0, np.ones(len(schedule) - 1))
    return mean + at(inner) * (0.5 * log_variance).exp() * noise


def step_variance(
    schedule: Schedule, index: int, fixed_variance: FixedVariance
) -> tuple[float, float]:
    """Variance of an ancestral step that is not learned, and its logarithm.

    They part at index 0 of ``"small"``, where the variance is 0.
    """
    variance, log_variance = _fixed_variance(schedule, fixed_variance)
    return float(variance[index]), float(log_variance[index])


def _fixed_variance(schedule: Schedule, kind: FixedVariance) -> tuple[Floats, Floats]:
    small = schedule.posterior_log_variance
    if kind == "small":
        return schedule.posterior_variance, small
    # The published "large" variance borrows the posterior's at index 0, where beta is too much.
    large = np.append(np.exp(small[:1]), schedule.betas[1:])
    return large, np.log(large)


def _variance(
    schedule: Schedule,
    at: Callable[[Table], Tensor],
    fraction: Tensor | None,
    fixed_variance: FixedVariance,
) -> tuple[Tensor, Tensor]:
    """The step's variance and its logarithm."""
    if fraction is not None:
        # The network's output in [-1, 1] interpolates between the two (Improved DDPM, eq. 15).
        weight = (fraction + 1) / 2
        high, low = at(np.log(schedule.betas)), at(schedule.posterior_log_variance)
        learned = weight * high + (1 - weight) * low
        return learned.exp(), learned
    variance, log_variance = _fixed_variance(schedule, fixed_variance)
    return at(variance), at(log_variance)


def _gather(index: Index, like: Tensor) -> Callable[[Table], Tensor]:
    """Reads a table at the index, shaped to multiply images like ``like``."""

    def at(table: Table) -> Tensor:
        values = torch.as_tensor(table)
        if isinstance(index, int):
            return values[index].to(device=like.device, dtype=like.dtype)
        rows = values[index.cpu()]
        return rows.to(device=like.device, dtype=like.dtype)[:, None, None, None]

    return at


@torch.no_grad()
def trajectory(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    guide: Guide | None = None,
    stepper: Stepper | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Sample one batch, yielding every intermediate state.

    Args:
        denoiser: what is sampled from.
        sampler: e.g. ``DDIM(25)``.
        seeds: one per image.
        guide: with one target per image.
        stepper: computes the steps of this denoiser, instead of the network, guide and sampler
            called one after another.

    Yields:
        (original timestep just left, x after the step: (B, C, H, W)), noisiest first; the
        last x is the image.
    """
    device = module_device(denoiser)
    schedule = denoiser.schedule.respace(sampler.spacing)
    streams = NoiseStreams(seeds, denoiser.shape, device)
    x_t = streams.draw()
    for index in reversed(range(len(schedule))):
        timestep = int(schedule.timesteps[index])
        noise = streams.draw() if sampler.stochastic else None
        if stepper is not None:
            x_t = stepper.step(sampler, schedule, index, x_t, guide, noise)
        else:
            timesteps = torch.full((len(x_t),), timestep, device=device)
            prediction = denoiser(x_t, timesteps)
            gradient = None if guide is None else guide(x_t, timesteps)
            x_t = sampler.step(schedule, index, x_t, prediction, gradient, noise)
        yield timestep, x_t


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    guide: Guide | None = None,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
    stepper: Stepper | None = None,
) -> Tensor:
    """Generate one image per seed.

    Args:
        denoiser: what is sampled from.
        sampler: e.g. ``DDIM(25)``.
        seeds: one per image; an image depends on its own alone (and its target).
        guide: steers the samples; its targets run parallel to ``seeds``.
        batch: images per network call.
        progress: called with the number of images finished, after each batch.
        stepper: computes the steps of this denoiser in another way, such as the fast path.

    Returns:
        (N, C, H, W) float32 images in [-1, 1] on the CPU.

    Raises:
        ValueError: if the guide's targets, or the denoiser's conditions, are for another
            number of images than there are seeds.
    """
    if denoiser.condition_count not in (None, len(seeds)):
        raise ValueError(
            f"{len(seeds)} seeds, but conditions for {denoiser.condition_count} images"
        )
    if guide is not None and len(guide) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds need as many targets, the guide has {len(guide)}")
    images = []
    for start in range(0, len(seeds), batch):
        rows = slice(start, start + batch)
        part = None if guide is None else guide.rows(rows)
        steps = trajectory(denoiser.rows(rows), sampler, seeds[rows], part, stepper)
        _, x_0 = deque(steps, maxlen=1).pop()
        images.append(x_0.clamp(-1, 1).float().cpu())
        if progress is not None:
            progress(len(x_0))
    return torch.cat(images) if images else torch.empty(0, *denoiser.shape)
