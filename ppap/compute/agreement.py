"""The check of a compiled graph against what it stands for."""

from __future__ import annotations

from torch import Tensor

__all__ = ["agree"]

ROUNDING, HALF_ROUNDING = 5e-3, 5e-2
"""Relative errors that are taken for rounding, TF32's included, and that of half precision."""


def agree(found: Tensor, expected: Tensor, half: bool) -> bool:
    """Whether two results are the same up to rounding; NaN agrees with nothing.

    At a kink, such as a ReLU's, rounding may turn the gradient of a single sample, so that the
    median sample counts.

    Args:
        found: (B, ...).
        expected: (B, ...).
        half: whether they were computed in half precision.
    """
    if found.shape != expected.shape:
        return False
    apart = (found.double() - expected.double()).flatten(1).norm(dim=1)
    error = apart / expected.double().flatten(1).norm(dim=1).clamp(min=1e-30)
    return bool(error.median() <= (HALF_ROUNDING if half else ROUNDING))
