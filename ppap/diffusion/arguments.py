"""What is drawn from, what guides and what steps, looked at before anything is computed."""

from __future__ import annotations

from typing import Any

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.stepping import check_guide

__all__ = ["check_arguments"]


def check_arguments(denoiser: Any, guide: Any = None, sampler: Any = None) -> None:
    """Refuse what is no denoiser, no guide or no sampler.

    Args:
        denoiser: what is to be drawn from.
        guide: None for none.
        sampler: None for the default.

    Raises:
        TypeError: saying what was expected, and what came.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            "samples are drawn from a ppap.Denoiser(network, schedule, shape), "
            f"got {type(denoiser).__name__}"
        )
    if guide is not None:
        check_guide(guide)
    steps = hasattr(sampler, "respace") and hasattr(sampler, "step")
    if sampler is not None and (isinstance(sampler, type) or not steps):
        raise TypeError(f"a sampler is such as ppap.DDIM(25), got {sampler!r}")
