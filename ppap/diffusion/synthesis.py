"""Images without data: what the unguided diffusion model draws is the training set."""

from __future__ import annotations

from torch import Tensor

from ppap.compute.progress import Progress
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import sample
from ppap.diffusion.solver import Sampler, Stepper, plain_step
from ppap.files.images import to_uint8

__all__ = ["synthesize"]


def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = None,
    first_seed: int = 0,
    batch: int = 128,
    progress: bool | Progress = False,
    stepper: Stepper = plain_step,
) -> Tensor:
    """Draw unguided images, kept as bytes as a data set would be.

    Args:
        denoiser: the unconditional diffusion model.
        count: number of images; the paper's scale is 500 000.
        sampler: DDIM-25 by default, as in the paper.
        first_seed: image i has seed ``first_seed + i``, so shards join without overlap.
        batch: images per network call.
        progress: True shows a bar; a function is told how many images are finished.
        stepper: computes the steps, as for :func:`ppap.diffusion.sampling.sample`.

    Returns:
        (count, C, H, W) uint8.
    """
    seeds = range(first_seed, first_seed + count)
    images = sample(
        denoiser, seeds, sampler=sampler, batch=batch, progress=progress, stepper=stepper
    )
    return to_uint8(images)
