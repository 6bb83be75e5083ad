"""What one call of ``sample`` has prepared, kept for the next ones of the same process."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ppap.compute.packages import cache_folder
from ppap.compute.precision import Precision, float32_modes
from ppap.compute.recent import Recent
from ppap.diffusion.denoiser import Denoiser
from ppap.fast.path import FastPath

__all__ = ["batch_for", "forget_paths", "kept_path"]

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
"""Batches below the usual one for which graphs are prepared; others are filled up."""
MOST = 4
"""Fast paths that are kept: each holds a denoiser, and its weights once more in its graphs."""

_paths: Recent[tuple[Hashable, ...], FastPath] = Recent(MOST)


def kept_path(denoiser: Denoiser, batch: int, precision: Precision = "fp32") -> FastPath:
    """The fast path of a denoiser in this process, made at its first use.

    It holds the denoiser, so that no other can take its place under the same key, and notices by
    itself when weights have changed. The four that were used last are kept.

    Args:
        denoiser: what is sampled from.
        batch: images per call.
        precision: in which networks compute.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
    """
    key = (id(denoiser), batch, precision, *_circumstances())
    return _paths.get(key, lambda: FastPath(denoiser, batch, precision=precision))


def forget_paths() -> None:
    """Let go of every kept path, and of the memory that they take."""
    _paths.clear()


def batch_for(count: int, batch: int) -> int:
    """How many images graphs are prepared for, if ``count`` are to be drawn in batches.

    Of few images the next larger of :data:`SIZES`, so that a process that draws now 20, now 23
    compiles once; the batch itself otherwise.
    """
    return min([batch, *(size for size in SIZES if size >= count)])


def _circumstances() -> tuple[Hashable, ...]:
    """What graphs are made for beside their inputs, and what may change within a process."""
    return (
        cache_folder(),
        torch.get_num_threads(),
        *float32_modes(),
        torch.are_deterministic_algorithms_enabled(),
    )
