"""The update from x_t to the next x, guidance included, as one elementwise pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ppap_kernels import guided_ddim_step, guided_ddpm_step
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM, step_variance
from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler, Update

__all__ = ["fused_step", "fused_update", "image_ahead", "step_coefficients"]


def step_coefficients(
    sampler: Sampler, schedule: Schedule, index: int, batch: int, device: torch.device
) -> dict[str, Tensor] | None:
    """What the fused update multiplies by, (B,) float32 each; None if it is another's.

    Classes derived from DDIM or DDPM may have overridden the step, and count as others.
    """
    level, before = schedule.alphas_cumprod[index], schedule.alphas_cumprod_prev[index]
    found: dict[str, float]
    if type(sampler) is DDIM:
        # Differences from 1 in float32, as in the plain step.
        one, a, b = np.float32(1), np.float32(level), np.float32(before)
        sigma = sampler.eta * np.sqrt((one - b) / (one - a)) * np.sqrt(one - a / b)
        found = {"signal": level, "signal_prev": before, "sigma": float(sigma)}
    elif type(sampler) is DDPM:
        beta = schedule.betas[index]
        variance, log_variance = step_variance(schedule, index, sampler.fixed_variance)
        found = {
            "signal": level,
            "x0_weight": beta * np.sqrt(before) / (1 - level),
            "x_t_weight": (1 - before) * np.sqrt(1 - beta) / (1 - level),
            "variance": variance,
            "log_variance": log_variance,
            "log_beta": float(np.log(beta)),
            "log_posterior": float(schedule.posterior_log_variance[index]),
            "inner": float(index > 0),
        }
    else:
        return None
    return {
        name: torch.full((batch,), float(value), dtype=torch.float32, device=device)
        for name, value in found.items()
    }


def fused_update(
    sampler: Sampler,
    coefficients: Mapping[str, Tensor],
    x_t: Tensor,
    prediction: Prediction,
    gradient: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """One elementwise pass over x_t, noise estimate, gradient and noise.

    Args:
        sampler: DDIM or DDPM.
        coefficients: of :func:`step_coefficients`.
        x_t: (B, C, H, W).
        prediction: the denoiser's for it.
        gradient: (B, C, H, W), scaled.
        noise: (B, C, H, W) standard normal.
    """
    c = coefficients
    if type(sampler) is DDIM:
        fresh = noise if sampler.eta > 0 else None
        return guided_ddim_step(
            x_t, prediction.epsilon, c["signal"], c["signal_prev"], c["sigma"],
            gradient, fresh, sampler.clip,
        )  # fmt: skip
    assert type(sampler) is DDPM
    assert noise is not None
    variance: Tensor | None = c["variance"]
    log_variance = c["log_variance"]
    if prediction.variance_fraction is not None:
        share = (prediction.variance_fraction + 1) / 2
        high, low = (c[name][:, None, None, None] for name in ("log_beta", "log_posterior"))
        log_variance, variance = share * high + (1 - share) * low, None
    return guided_ddpm_step(
        x_t, prediction.epsilon, c["signal"], c["x0_weight"], c["x_t_weight"], log_variance,
        variance, gradient, c["inner"][:, None, None, None] * noise, sampler.clip,
    )  # fmt: skip


def image_ahead(
    sampler: Sampler,
    signal: Tensor,
    x_t: Tensor,
    prediction: Prediction,
    gradient: Tensor | None,
) -> Tensor:
    """The image that a step goes towards, as :class:`ppap.diffusion.solver.Update` has it.

    Args:
        sampler: DDIM or DDPM.
        signal: (B,), abar.
        x_t: (B, C, H, W).
        prediction: the denoiser's for it.
        gradient: (B, C, H, W), scaled.
    """
    assert isinstance(sampler, DDIM | DDPM)
    level = signal[:, None, None, None]
    x_0 = (x_t - (1 - level).sqrt() * prediction.epsilon) / level.sqrt()
    if sampler.clip:
        x_0 = x_0.clamp(-1, 1)
    if gradient is None or isinstance(sampler, DDPM):
        return x_0
    return x_0 + (1 - level) / level.sqrt() * gradient


def fused_step(
    sampler: Sampler,
    schedule: Schedule,
    index: int,
    x_t: Tensor,
    prediction: Prediction,
    gradient: Tensor | None,
    noise: Tensor | None,
    memory: Any,
) -> Update:
    """:meth:`Sampler.step` through the fused update where there is one."""
    found = step_coefficients(sampler, schedule, index, len(x_t), x_t.device)
    if found is None:
        return sampler.step(schedule, index, x_t, prediction, gradient, noise, memory)
    x = fused_update(sampler, found, x_t, prediction, gradient, noise)
    return Update(x, image_ahead(sampler, found["signal"], x_t, prediction, gradient), gradient)
