"""Guidance scales: one number, one per sample, or a function of the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppap.diffusion.guide import State

__all__ = [
    "Scale",
    "checked_scale",
    "differentiable",
    "is_zero",
    "scale_at",
    "scale_count",
    "scale_rows",
    "scaled",
    "weighted",
]

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
        values = differentiable(torch.as_tensor(scale, dtype=torch.float32))
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


def scale_count(scale: Scale) -> int | None:
    """How many samples a scale is for; None if any number."""
    return len(scale) if isinstance(scale, Tensor) else None


def scale_rows(scale: Scale, chosen: slice) -> Scale:
    """The scale of some of the samples."""
    return scale[chosen] if isinstance(scale, Tensor) else scale


def scale_at(scale: Scale, state: State) -> float | Tensor:
    """The scale at a state's noise level: a number, or (B,) numbers.

    Raises:
        TypeError: for a function that gives neither a number nor numbers.
        ValueError: for another number of scales than of samples.
    """
    if callable(scale) and not isinstance(scale, Tensor):
        scale = _of_level(scale, state.signal)
    if isinstance(scale, int | float):
        return scale
    scale, count = torch.as_tensor(scale), len(state.x_t)
    if scale.shape not in ((), (count,)):
        raise ValueError(f"{count} samples need one guidance scale each, got {tuple(scale.shape)}")
    return scale


def is_zero(scale: float | Tensor) -> bool:
    """Whether a scale, of :func:`scale_at`, leaves every sample unguided."""
    return not bool(scale.any()) if isinstance(scale, Tensor) else scale == 0


def scaled(scale: Scale, gradient: Tensor, state: State) -> Tensor:
    """``scale`` times a gradient (B, C, H, W)."""
    value = scale_at(scale, state)
    if not isinstance(value, Tensor):
        return value * gradient
    rows = value.to(gradient).reshape(-1, 1, 1, 1)
    # What is to be unguided is so whatever its gradient: NaN, too, where a predictor overflowed.
    return torch.where(rows == 0, 0, rows * gradient)


def differentiable(values: Tensor) -> Tensor:
    """The same values; a copy of those made in inference mode, which no graph may hold."""
    with torch.inference_mode(False):
        return values.clone() if values.is_inference() else values


def weighted(scale: Scale, weight: float) -> Scale:
    """A scale times a number.

    Raises:
        TypeError: for what is neither a number, nor numbers, nor a function.
        ValueError: for a number that is not finite.
    """
    checked = checked_scale(scale, None)
    if callable(checked) and not isinstance(checked, Tensor):
        return lambda signal: weight * _of_level(checked, signal)
    return weight * checked


def _of_level(scale: ScaleOfLevel, signal: Tensor) -> Tensor:
    """What a function gives for (B,) abar: (B,) scales or one.

    Raises:
        TypeError: for neither a number nor numbers.
    """
    found = scale(signal)
    try:
        return torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"a guidance scale that is a function of abar gives (B,) numbers or one, got {found!r}"
        ) from error
