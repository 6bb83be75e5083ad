"""Guidance scales: one number, one per sample, or a function of the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppap.diffusion.guide import State

__all__ = ["Scale", "checked_scale", "scale_rows", "scaled"]

ScaleOfLevel = Callable[[Tensor], Tensor | float]
"""abar: (B,) in (0, 1), near 1 at the image -> scales (B,), or one for all."""

Scale = float | Tensor | Sequence[float] | ScaleOfLevel
"""A number, (N,) numbers, one per sample, or a function of the noise level."""


def checked_scale(scale: Scale, target_count: int | None) -> float | Tensor | ScaleOfLevel:
    """A scale as guides keep it: a number, a (N,) float32 tensor or a function.

    Raises:
        TypeError: for what is neither a number, nor numbers, nor a function.
        ValueError: if a number is not finite, or there is another number of scales than of
            targets.
    """
    if callable(scale) and not isinstance(scale, Tensor):
        return scale
    if isinstance(scale, int | float):
        if not math.isfinite(scale):
            raise ValueError(f"a guidance scale must be finite, got {scale}")
        return scale
    try:
        values = torch.as_tensor(scale, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"a guidance scale is a number, numbers or a function of abar, got {scale!r}"
        ) from error
    if values.ndim == 0:
        return checked_scale(float(values), target_count)
    if values.ndim != 1 or target_count not in (None, len(values)):
        expected = "(N,)" if target_count is None else f"({target_count},)"
        raise ValueError(
            f"guidance scales are one number or {expected}, one per sample; "
            f"got shape {tuple(values.shape)}"
        )
    if not values.isfinite().all():
        raise ValueError(f"guidance scales must be finite, got {values.tolist()}")
    return values


def scale_rows(
    scale: float | Tensor | ScaleOfLevel, chosen: slice
) -> float | Tensor | ScaleOfLevel:
    """The scale of some of the samples."""
    return scale[chosen] if isinstance(scale, Tensor) else scale


def scaled(scale: float | Tensor | ScaleOfLevel, gradient: Tensor, state: State) -> Tensor:
    """``scale`` times a gradient (B, C, H, W)."""
    if callable(scale) and not isinstance(scale, Tensor):
        scale = torch.as_tensor(scale(state.signal))
    if not isinstance(scale, Tensor):
        return scale * gradient
    if scale.shape not in ((), (len(gradient),)):
        raise ValueError(
            f"{len(gradient)} samples need one guidance scale each, got {tuple(scale.shape)}"
        )
    return scale.to(gradient).reshape(-1, 1, 1, 1) * gradient
