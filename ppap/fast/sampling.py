"""Sampling on the fast path where it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ppap.diffusion import samplers, synthesis
from ppap.diffusion.denoiser import Denoiser, module_device
from ppap.diffusion.samplers import Sampler
from ppap.fast.path import FastPath
from ppap.guidance.guides import Guide

__all__ = ["fast_path", "sample", "synthesize"]


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    guide: Guide | None = None,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
    fast: FastPath | bool | None = None,
) -> Tensor:
    """Generate one image per seed.

    Args:
        denoiser: what is sampled from.
        sampler: e.g. ``DDIM(25)``.
        seeds: one per image; an image depends on its own alone (and its target).
        guide: steers the samples; its targets run parallel to ``seeds``.
        batch: images per network call.
        progress: called with the number of images finished, after each batch.
        fast: whether steps are merged, folded and compiled (see :mod:`ppap.fast.path`); one that
            was made before keeps what it has compiled. By default they are on a GPU; on a CPU
            compilation takes a minute the first time, and images differ by rounding.

    Returns:
        (N, C, H, W) float32 images in [-1, 1] on the CPU.

    Raises:
        ValueError: if the guide's targets, or the denoiser's conditions, are for another
            number of images than there are seeds, or the fast path meets conditions that
            differ between images.
    """
    path = fast_path(denoiser, min(batch, len(seeds)), fast)
    return samplers.sample(denoiser, sampler, seeds, guide, batch, progress, path)


def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = None,
    first_seed: int = 0,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
    fast: FastPath | bool | None = None,
) -> Tensor:
    """:func:`ppap.diffusion.synthesis.synthesize`, with ``fast`` as for :func:`sample`."""
    path = fast_path(denoiser, min(batch, count), fast)
    return synthesis.synthesize(denoiser, count, sampler, first_seed, batch, progress, path)


def fast_path(denoiser: Denoiser, batch: int, fast: FastPath | bool | None) -> FastPath | None:
    """The fast path that ``fast`` asks for; None where the plain path runs.

    Args:
        denoiser: what is sampled from.
        batch: images per network call.
        fast: True for a new one, one made before, False for none; None chooses a new one on a
            GPU, unless the denoiser's conditions differ between images.

    Raises:
        ValueError: for the fast path and conditions that differ between images.
    """
    if fast is None:
        fast = module_device(denoiser).type == "cuda" and denoiser.condition_count is None
    if fast and denoiser.condition_count is not None:
        raise ValueError("conditions that differ between images need fast=False")
    if isinstance(fast, bool):
        return FastPath(denoiser, batch) if fast and batch else None
    return fast
