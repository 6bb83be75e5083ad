"""Images without data: what the unguided diffusion model draws is the training set."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.samplers import DDIM, Sampler, Stepper, sample
from ppap.files.images import to_uint8

__all__ = ["synthesize"]


def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = None,
    first_seed: int = 0,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
    stepper: Stepper | None = None,
) -> Tensor:
    """Draw unguided images, kept as bytes as a data set would be.

    Args:
        denoiser: the unconditional diffusion model.
        count: number of images; the paper's scale is 500 000.
        sampler: DDIM-25 by default, as in the paper.
        first_seed: image i has seed ``first_seed + i``, so shards join without overlap.
        batch: images per network call.
        progress: called with the number of images finished, after each batch.
        stepper: computes the steps, as for :func:`ppap.diffusion.samplers.sample`.

    Returns:
        (count, C, H, W) uint8.
    """
    seeds = range(first_seed, first_seed + count)
    return to_uint8(
        sample(
            denoiser,
            sampler or DDIM(25),
            seeds,
            batch=batch,
            progress=progress,
            stepper=stepper,
        )
    )
