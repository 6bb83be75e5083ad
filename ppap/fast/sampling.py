"""Sampling on the fast path where it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppap.compute.options import check_whole
from ppap.compute.precision import Precision
from ppap.compute.progress import Progress
from ppap.diffusion import sampling, synthesis
from ppap.diffusion.arguments import check_arguments
from ppap.diffusion.denoiser import Denoiser, module_device
from ppap.diffusion.sampling import Step
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import AnyGuide, plain_step
from ppap.fast.kept import batch_for, kept_path
from ppap.fast.path import FastPath
from ppap.fast.presets import Preset, preset_of
from ppap.files.shards import ImageShards

__all__ = ["fast_path", "sample", "synthesize"]


def sample(
    denoiser: Denoiser,
    seeds: int | Sequence[int],
    guide: AnyGuide | None = None,
    sampler: Sampler | None = None,
    *,
    batch: int = 128,
    x_T: Tensor | None = None,  # noqa: N803
    progress: bool | Progress = False,
    on_step: Callable[[Step], None] | None = None,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    fast: FastPath | bool | None = None,
    preset: str | Preset | None = None,
) -> Tensor:
    """Generate one image per seed.

    An image depends on its own seed alone, and its target. On one machine, with the same
    versions, instruction set, number of threads, ``batch`` and ``fast``, the same call gives the
    same images bit for bit. Change any of these and images are equal up to rounding: unguided or
    gently guided ones to a small part of a grey level. A guide with kinks, such as a ReLU network,
    amplifies rounding at large scales: where an activation lies just beside zero, the last bit
    decides which way the gradient points, and now and then a sample becomes another picture. How
    often is measured by ``python -m bench.rounding``: in its committed record, at another batch
    size none of 448 samples moves by more than a grey level, on another instruction set one, and
    on the fast path two.

    Args:
        denoiser: what is sampled from.
        seeds: one per image, each from 0 to 2^32 - 1; a number n stands for 0, 1, ..., n - 1.
        guide: steers the samples; its targets run parallel to ``seeds``, unless one stands
            for all.
        sampler: the preset's, or ``DDIM(25)``, by default.
        batch: images per network call.
        x_T: (N, C, H, W), the noise to begin with, instead of each seed's own.
        progress: True shows a bar; a function is told how many images are finished.
        on_step: called after every step of every batch with what happened in it.
        device: where to compute; the denoiser and the guide's model are moved there and stay.
            By default it is where the denoiser is.
        precision: in which networks compute, ``"fp32"`` or, where the device has it,
            ``"bf16"``; the steps themselves are float32. By default that of a fast path of your
            own, the preset's, or float32.
        fast: whether steps are merged, folded and compiled (see :mod:`ppap.fast.path`). What is
            compiled is kept for later calls of the process (:mod:`ppap.fast.kept`), or by a path
            of your own. By default they are on a GPU; on a CPU compilation takes a minute the
            first time, and images differ by rounding.
        preset: sampler, path, precision and weight of the guide under one name of
            :data:`ppap.fast.presets.PRESETS`, or a :class:`ppap.fast.presets.Preset`; a
            ``sampler``, ``fast`` or ``precision`` beside it takes the place of its own.
            ``"fast"`` draws in 8 steps of DPM-Solver++ on the fast path, ``"held-back"`` holds the
            guide back in the noise besides, ``"calibrated"`` calibrates one towards classes
            (:mod:`ppap.guidance.methods.calibrated`), ``"standard"`` is DDIM-25. Which suits the
            images, :func:`ppap.fast.best.best_preset` finds out. A guidance scale that suits one
            of them does not suit another: choose it anew.

    Returns:
        (N, C, H, W) float32 images in [-1, 1] on the CPU.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
        TypeError: if ``seeds`` is neither a number nor a sequence of numbers, or anything is none
            of what it is to be.
        ValueError: if the guide's targets, the denoiser's conditions or ``x_T`` are for
            another number of images than there are seeds, or the fast path meets conditions
            that differ between images, or is one of your own in another precision, or no
            preset has that name.
    """
    check_arguments(denoiser, guide, sampler)
    check_whole("batch", batch)
    if device is not None:
        denoiser.to(device)
    seeds = sampling.seed_list(seeds)
    if preset is not None:
        known = preset_of(preset)
        sampler, fast, precision = known.settle(denoiser, sampler, fast, precision)
        guide = known.guided(guide)
    if precision is None:
        precision = _own_precision(fast)
    path = fast_path(denoiser, batch_for(len(seeds), batch), fast, precision)
    return sampling.sample(
        denoiser,
        seeds,
        guide,
        sampler,
        batch=batch,
        x_T=x_T,
        progress=progress,
        on_step=on_step,
        device=device,
        precision=precision,
        stepper=plain_step if path is None else path.step,
    )


def synthesize(
    denoiser: Denoiser,
    count: int,
    sampler: Sampler | None = None,
    first_seed: int = 0,
    batch: int = 128,
    progress: bool | Progress = False,
    fast: FastPath | bool | None = None,
    folder: str | Path | None = None,
    shard: int = 1024,
) -> Tensor | ImageShards:
    """:func:`ppap.diffusion.synthesis.synthesize`, with ``fast`` as for :func:`sample`."""
    path = fast_path(denoiser, batch_for(count, batch), fast, _own_precision(fast))
    stepper = plain_step if path is None else path.step
    return synthesis.synthesize(
        denoiser, count, sampler, first_seed, batch, progress, stepper, folder, shard
    )


def fast_path(
    denoiser: Denoiser,
    batch: int,
    fast: FastPath | bool | None,
    precision: Precision = "fp32",
) -> FastPath | None:
    """The fast path that ``fast`` asks for; None where the plain path runs.

    Args:
        denoiser: what is sampled from.
        batch: images per network call.
        fast: True for that which this process keeps, or one of the caller's; False for none;
            None chooses the kept one on a GPU, unless the denoiser's conditions differ between
            images.
        precision: in which networks are to compute.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
        TypeError: for what is none of these.
        ValueError: for the fast path and conditions that differ between images, or one of the
            caller's in another precision.
    """
    if not isinstance(fast, bool | FastPath | None):
        raise TypeError(f"fast is True, False, None or a ppap.FastPath, got {fast!r}")
    if fast is None:
        fast = module_device(denoiser).type == "cuda" and denoiser.condition_count is None
    if fast and denoiser.condition_count is not None:
        raise ValueError("conditions that differ between images need fast=False")
    if isinstance(fast, bool):
        return kept_path(denoiser, batch, precision) if fast else None
    if fast.precision != precision:
        raise ValueError(
            f"this fast path computes in {fast.precision!r}, not {precision!r}; make one with "
            f"FastPath(denoiser, {fast.batch}, precision={precision!r})"
        )
    return fast


def _own_precision(fast: FastPath | bool | None) -> Precision:
    """In which networks compute where nothing else is asked for."""
    return fast.precision if isinstance(fast, FastPath) else "fp32"
