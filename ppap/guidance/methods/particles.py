"""Drawing particles: populations of k to a sample, all (k, B, ...)."""

from __future__ import annotations

import torch
from torch import Tensor

from ppap.diffusion.stepping import SamplingStep

__all__ = ["chosen", "started", "systematic"]


def started(step: SamplingStep, count: int) -> list[Tensor]:
    """``count`` batches (B, C, H, W) to begin with, the first of them the step's own."""
    x_t = step.state.x_t
    if step.state.number:  # in the middle: copies, which the noise of the steps will part
        return [x_t] * count
    return [x_t, *(step.draw() for _ in range(count - 1))]


def systematic(log_weights: Tensor, noise: Tensor) -> Tensor:
    """Systematic resampling: as many copies of a particle as its share of k, rounded.

    Args:
        log_weights: (k, B).
        noise: (B, C, H, W) standard normal; the first value of each sample decides.

    Returns:
        (k, B) numbers of particles.
    """
    count = len(log_weights)
    ends = log_weights.softmax(0).cumsum(0)
    uniform = torch.special.ndtr(noise.flatten(1)[:, 0])
    places = (torch.arange(count, device=noise.device)[:, None] + uniform) / count
    return torch.searchsorted(ends.T.contiguous(), places.T.contiguous()).T.clamp_max(count - 1)


def chosen(x: Tensor, particles: Tensor) -> Tensor:
    """Of (k, B, C, H, W) the particles (k', B) of each sample: (k', B, C, H, W)."""
    found: Tensor = x[particles, torch.arange(x.shape[1], device=x.device)]
    return found
