"""Means over the pixels of a map of which something is known."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["known_mean", "standardised"]


def known_mean(values: Tensor, known: Tensor) -> Tensor:
    """(B,) mean over the pixels that count; 0 where none does."""
    total = torch.where(known, values, 0).sum(dim=(1, 2))
    return total / known.sum(dim=(1, 2)).clamp(min=1)


def standardised(maps: Tensor, known: Tensor) -> Tensor:
    """Maps of zero mean and unit variance over the pixels that count, whatever their scale.

    What rounding leaves of a constant map is not blown up to unit variance: the variance is taken
    to be no less than (16 eps)^2 times the mean square. A map of zeros stays one.
    """
    away = maps - known_mean(maps, known)[:, None, None]
    variance = known_mean(away.square(), known)
    power = known_mean(maps.detach().square(), known)
    floored = variance + (16 * torch.finfo(maps.dtype).eps) ** 2 * power
    scale = torch.where(power > 0, floored, 1).rsqrt()
    return away * scale[:, None, None]
