"""What is drawn from, what guides and what steps, looked at before anything is computed."""

from __future__ import annotations

import logging
from typing import Any

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.stepping import check_guide

__all__ = ["check_arguments", "tell_of_clipped_latents"]

logger = logging.getLogger(__name__)


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


def tell_of_clipped_latents(denoiser: Denoiser, guide: Any, sampler: Any) -> None:
    """Log one line for what clips predicted latents, whose values are not those of images.

    Args:
        denoiser: of latents, if it has a decoder; of images nothing is said.
        guide: a method may clip what it looks at.
        sampler: this library's, or one by a scheduler of diffusers.
    """
    if denoiser.decoder is None:
        return
    scheduler = getattr(sampler, "scheduler", None)
    for part, clips, mend in (
        (sampler, getattr(sampler, "clip", False), "clip=False"),
        (scheduler, getattr(scheduler, "config", {}).get("clip_sample"), "clip_sample=False"),
        (guide, getattr(guide, "clip", None), "clip=None"),
    ):
        if clips:
            logger.warning(
                "%s clips predicted latents as if they were images; unless they are held in the "
                "same range, give it %s",
                type(part).__name__,
                mend,
            )
