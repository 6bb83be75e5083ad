"""Where a guide's gradient enters a step: Dhariwal & Nichol (arXiv 2105.05233).

Samplers that step towards a predicted image shift the predicted noise (algorithm 2); ancestral
sampling shifts the mean (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Table

__all__ = ["guided_mean", "guided_prediction"]


def guided_prediction(
    schedule: Schedule,
    at: Callable[[Table], Tensor],
    x_t: Tensor,
    prediction: Prediction,
    gradient: Tensor | None,
    clip: bool,
    bound: float = 1,
) -> tuple[Tensor, Tensor]:
    """The predicted image and noise, guided if there is a gradient.

    In the published order: the predicted image is clipped, the noise implied by it is shifted
    by -sqrt(1 - abar) gradient, and the image is predicted again from the shifted noise, not
    clipped a second time.

    Args:
        schedule: the respaced schedule.
        at: reads its tables at the step's index (:func:`ppap.diffusion.solver.gather`).
        x_t: (B, C, H, W) noisy images.
        prediction: the denoiser's for ``x_t``.
        gradient: (B, C, H, W), scaled.
        clip: whether the predicted image is clipped to [-bound, bound].
        bound: of an image's values.

    Returns:
        x_0 and epsilon, (B, C, H, W) each.
    """
    level = schedule.alphas_cumprod
    scaled = at(np.sqrt(1 / level)) * x_t
    ratio = at(np.sqrt(1 / level - 1))
    x_0 = scaled - ratio * prediction.epsilon
    if clip:
        x_0 = x_0.clamp(-bound, bound)
    epsilon = (scaled - x_0) / ratio
    if gradient is not None:
        # A difference in float32 under NumPy's root, for the reason given at DDIM's step.
        epsilon = epsilon - at(np.sqrt(1 - level.astype(np.float32))) * gradient
        x_0 = scaled - ratio * epsilon
        epsilon = (scaled - x_0) / ratio
    return x_0, epsilon


def guided_mean(mean: Tensor, variance: Tensor, gradient: Tensor | None) -> Tensor:
    """The mean of an ancestral step, shifted by its variance times the gradient."""
    return mean if gradient is None else mean + variance * gradient
