"""One random stream per image, so that a sample depends on its seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppap.compute.options import check_whole

__all__ = ["NoiseStreams", "derived_generator", "derived_seed"]

MAX_SEED = 2**32 - 1
"""PyTorch's CPU generator reads the low 32 bits of a seed alone."""


def derived_seed(*numbers: int) -> int:
    """A seed that several non-negative numbers set, e.g. (seed, stage)."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1)
    return int(state)


def derived_generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is set by several non-negative numbers, e.g. (seed, step)."""
    return torch.Generator(device).manual_seed(derived_seed(*numbers))


class NoiseStreams:
    """Standard normal draws for a batch of images, each from a generator of its own.

    The generators live on the CPU whatever the device, so a seed means the same noise on
    every machine, in any batch and any shard.

    Args:
        seeds: one seed per image, 0 <= seed < 2^32.
        shape: (C, H, W) of one image.
        device: where the draws are wanted.

    Raises:
        TypeError: for a seed that is no whole number.
        ValueError: for a seed out of range.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        for seed in seeds:
            check_whole("a seed", seed, 0, MAX_SEED)
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self) -> Tensor:
        """The next standard normal draw of every stream: (B, C, H, W) float32."""
        rows = torch.empty(len(self._generators), *self._shape, dtype=torch.float32)
        for row, generator in zip(rows, self._generators, strict=True):
            row.normal_(generator=generator)
        return rows.to(self._device)
