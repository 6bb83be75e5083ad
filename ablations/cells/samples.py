"""Generated images as cells, guided by nothing, by one model or by several at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from ablations.cells.guidance import Guidance
from ablations.cells.setup import Setup
from ablations.cells.synthesis import in_batches_that_fit
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.stepping import AnyGuide
from ppap.fast.sampling import sample
from ppap.files.images import to_uint8
from ppap.guidance.guides import SumOfGuides

__all__ = ["AnySampler", "SampleShard", "Samples", "record_scale", "sampler_name"]

AnySampler = DDIM | DDPM | DPMSolver
MOST_AT_ONCE, SHARD = 1000, 500
"""Samples that one cell draws, and those of a shard where there are more."""


def sampler_name(sampler: AnySampler) -> str:
    """What records call a sampler; no two that draw differently share a name.

    Plain DDIM and DDPM go by their spacing, ``ddim25`` and ``250``. Others may visit the same
    timesteps, so they go by their class, their steps and all that is not left at its default.
    """
    by_count = isinstance(sampler, DDIM | DDPM) and isinstance(sampler.steps, int)
    if by_count and sampler == type(sampler)(sampler.steps):
        return sampler.spacing
    told = [
        f"{field.name}={value!r}"
        for field in fields(sampler)
        if (value := getattr(sampler, field.name)) != field.default or field.name == "steps"
    ]
    return f"{type(sampler).__name__}({', '.join(told)})"


@dataclass(frozen=True)
class Samples(Cell):
    """Generated images of a row; image i is drawn from seed ``first_seed + i``.

    Many are drawn in shards, which may be drawn side by side and are kept if a run ends.

    Attributes:
        guidance: all at once; none for unguided samples.
    """

    setup: Setup
    sampler: AnySampler
    guidance: tuple[Guidance, ...]
    first_seed: int
    count: int

    def shards(self) -> tuple[SampleShard, ...]:
        """What they are joined from; empty for those that are drawn at once."""
        if self.count <= MOST_AT_ONCE:
            return ()
        return tuple(
            SampleShard(
                self.setup,
                self.sampler,
                self.guidance,
                self.first_seed + start,
                min(SHARD, self.count - start),
                start,
            )
            for start in range(0, self.count, SHARD)
        )

    def guidance_inputs(self) -> Iterator[Cell]:
        """The cells that drawing reads."""
        for part in self.guidance:
            yield from part.inputs()

    def inputs(self) -> Iterator[Cell]:
        yield from self.shards() or self.guidance_inputs()

    @property
    def guided_by(self) -> str:
        """Names of the models, as in the tables."""
        return ", ".join(part.model.name for part in self.guidance) or "unguided"

    def label(self) -> str:
        return f"samples {self.guided_by}"

    def seconds(self) -> float:
        return 1.0 if self.shards() else self.count * self.image_seconds()

    def size(self) -> int:
        return super().size() + self.count * self.setup.image_bytes()

    def image_seconds(self) -> float:
        """Expected time of one image."""
        gradients = sum(part.model.image_seconds() for part in self.guidance)
        steps = len(self.sampler.respace(linear_schedule()))
        return steps * (self.setup.denoise_seconds() + gradients)

    @property
    def place(self) -> int:
        """Of the first image in its row."""
        return 0

    def target_numbers(self, seeds: Sequence[int]) -> list[int]:
        """The numbers of the targets of images that are drawn from these seeds in turn."""
        places = range(self.place, self.place + len(seeds))
        return self.setup.load().order.numbers(seeds[0] - self.place, places)

    def targets(self, task: str) -> Tensor:
        """(count, ...) one target of a task per sample."""
        return self.setup.load().tasks[task].targets(self.target_numbers(self.seeds))

    def targets_of(self, task: str, drawn: Artifact) -> Tensor:
        """The same, of samples that may have brought their own along."""
        del drawn
        return self.targets(task)

    @property
    def seeds(self) -> range:
        """One per sample."""
        return range(self.first_seed, self.first_seed + self.count)

    def guide(self, load: Load, seeds: Sequence[int]) -> AnyGuide | None:
        """What guides images of these seeds, all models together."""
        tasks, numbers = self.setup.load().tasks, self.target_numbers(seeds)
        guides = tuple(
            part.model.guide(
                self.setup,
                load,
                tasks[part.model.task].targets(numbers),
                part.selected_scale(load),
            )
            for part in self.guidance
        )
        if len(guides) > 1:
            return SumOfGuides(guides)
        return guides[0] if guides else None

    def draw(self, load: Load, seeds: Sequence[int], batch: int | None = None) -> Tensor:
        """Images in [-1, 1] from any seeds, with the targets of as many places from the first on.

        Of a cascade, its first stage's.
        """
        guide = self.guide(load, seeds)
        return self.sampled(
            self.setup.load().denoiser().to(device()), seeds, guide, self.sampler, batch
        )

    def sampled(
        self,
        denoiser: Denoiser,
        seeds: Sequence[int],
        guide: AnyGuide | None,
        sampler: AnySampler,
        batch: int | None,
    ) -> Tensor:
        """Images in [-1, 1], on the setup's path, in ``batch`` at once or what the setup says."""
        fast, precision = self.setup.fast_with(denoiser), self.setup.precision
        return in_batches_that_fit(
            lambda size: sample(
                denoiser, seeds, guide, sampler, batch=size, fast=fast, precision=precision
            ),
            batch or self.setup.batch_for(len(seeds)),
        )

    def compute(self, load: Load) -> Artifact:
        if shards := self.shards():
            parts = [load(shard) for shard in shards]
            images = np.concatenate([part.arrays["images"] for part in parts])
            return Artifact({"scales": parts[0].meta["scales"]}, {"images": images})
        drawn, upsample = self.draw(load, self.seeds), self.setup.load().upsample
        images = drawn if upsample is None else upsample(drawn, self.seeds)
        pixels = to_uint8(images).cpu().numpy()
        scales = [part.selected_scale(load) for part in self.guidance]
        return Artifact({"scales": scales}, {"images": pixels})


@dataclass(frozen=True)
class SampleShard(Samples):
    """Some of the images of a row, from its image number ``offset`` on."""

    offset: int

    @property
    def place(self) -> int:
        return self.offset

    def shards(self) -> tuple[SampleShard, ...]:
        return ()


def record_scale(scales: Sequence[float] | None) -> float | None:
    """The scale in a record: that of the only guide; 0 without guide, None for several."""
    return None if scales is None or len(scales) > 1 else sum(scales, 0.0)
