"""Images to train on: synthetic ones, drawn without guidance, or the setting's labelled ones."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import Setting, device
from ppap.diffusion.ddim import DDIM
from ppap.fast.kept import forget_paths
from ppap.fast.sampling import synthesize
from ppap.files.images import Images

__all__ = [
    "ShuffledLabels",
    "Synthesis",
    "TrainingData",
    "concatenated",
    "in_batches_that_fit",
]

MOST_IN_MEMORY = 4 * 2**30
"""Bytes of images beyond which they are kept in a file."""


@dataclass(frozen=True)
class Synthesis(Cell):
    """A shard of images drawn without guidance: the data of data-free transfer."""

    setup: Setup
    sampler: DDIM
    first_seed: int
    count: int

    def label(self) -> str:
        return f"{self.count} synthetic images"

    def seconds(self) -> float:
        return self.count * self.sampler.steps * self.setup.denoise_seconds()

    def size(self) -> int:
        return super().size() + self.count * self.setup.image_bytes()

    def compute(self, load: Load) -> Artifact:
        denoiser = self.setup.load().denoiser().to(device())
        fast = self.setup.fast_with(denoiser)
        images = in_batches_that_fit(
            lambda batch: synthesize(
                denoiser, self.count, self.sampler, self.first_seed, batch, fast=fast
            ),
            self.setup.batch_for(self.count),
        )
        return Artifact({}, {"images": images.cpu().numpy()})


@dataclass(frozen=True)
class TrainingData:
    """What experts are trained on.

    Attributes:
        shards: of synthetic images; none means the setting's labelled training split.
        limit: only the first so many synthetic images; None for all.
    """

    shards: tuple[Synthesis, ...] = ()
    limit: int | None = None

    @property
    def supervision(self) -> str:
        """In a word, as in the tables."""
        return "data-free" if self.shards else "labelled"

    def load(self, setting: Setting, task: str, load: Load) -> tuple[Images, Tensor | None]:
        """(N, C, H, W) uint8 images and, if labelled, the task's targets (N, ...)."""
        images: Images
        targets: Tensor | None = None
        if self.shards:
            drawn = concatenated(load(shard).arrays["images"] for shard in self.shards)
            images = torch.from_numpy(drawn[: self.limit])
        else:
            images, targets = setting.tasks[task].labelled("train")
        return images, targets


@dataclass(frozen=True)
class ShuffledLabels(TrainingData):
    """The labelled training split with its targets dealt out anew: a negative control.

    Attributes:
        seed: of the shuffle.
    """

    seed: int = 0

    @property
    def supervision(self) -> str:
        return "shuffled"

    def load(self, setting: Setting, task: str, load: Load) -> tuple[Images, Tensor]:
        """(N, C, H, W) uint8 images, and the targets (N, ...) of others."""
        images, targets = setting.tasks[task].labelled("train")
        generator = torch.Generator().manual_seed(self.seed)
        return images, targets[torch.randperm(len(targets), generator=generator)]


def concatenated(parts: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Arrays of images as one; beyond :data:`MOST_IN_MEMORY` bytes in a file without a name."""
    held: list[npt.NDArray[np.uint8]] = []
    file: IO[bytes] | None = None
    count, shape = 0, ()
    with ExitStack() as stack:  # what is mapped outlives its file
        for part in parts:
            count, shape = count + len(part), part.shape[1:]
            held.append(part)
            if file is None and sum(one.nbytes for one in held) > MOST_IN_MEMORY:
                file = stack.enter_context(tempfile.TemporaryFile())
            if file is not None:
                for one in held:
                    file.write(np.ascontiguousarray(one).data)
                held = []
        if file is None:
            return np.concatenate(held)
        file.flush()
        return np.memmap(file, np.uint8, "r+", shape=(count, *shape))


def in_batches_that_fit(work: Callable[[int], Tensor], batch: int) -> Tensor:
    """The result of work in batches, in ever smaller ones while memory does not suffice.

    What the fast path has prepared for a larger batch, weights and graphs, is let go of first.
    """
    while True:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        forget_paths()
        gc.collect()  # a path refers to itself
        torch.cuda.empty_cache()
        batch = (batch + 1) // 2
