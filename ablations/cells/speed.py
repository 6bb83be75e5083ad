"""Throughput as cells: synthesis, training and guided sampling, with the machine to itself."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ablations.cells.experts import Experts
from ablations.cells.memory import peak_memory_mib, reset_peak_memory
from ablations.cells.predictors import train_seconds
from ablations.cells.samples import Samples
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.diffusion.ddim import DDIM
from ppap.experts.bank import ExpertBank
from ppap.experts.transfer import transfer
from ppap.fast.sampling import synthesize

__all__ = ["GuidanceSpeed", "SynthesisSpeed", "TransferSpeed"]

REPEATS = 3
WARM_STEPS, TIMED_STEPS = 2, 8


@dataclass(frozen=True)
class GuidanceSpeed(Cell):
    """Throughput and memory of guided sampling of one batch, with the machine to itself.

    Attributes:
        samples: one batch; it is drawn from several ranges of seeds, and not kept.
    """

    samples: Samples

    ALONE: ClassVar[bool] = True

    def inputs(self) -> Iterator[Cell]:
        yield from self.samples.guidance_inputs()

    def label(self) -> str:
        return f"speed of guidance {self.samples.guided_by}"

    def seconds(self) -> float:
        return 2.0 + REPEATS * self.samples.count * self.samples.image_seconds() / 1.5

    def compute(self, load: Load) -> Artifact:
        count, draw = self.samples.count, self.samples.draw
        draw(load, range(count), count)  # warm-up: weights, threads, allocator, graphs
        with Stopwatch() as watch:
            for repeat in range(REPEATS):
                draw(load, range(repeat * count, (repeat + 1) * count), count)
                watch.lap(count)
        return Artifact({"metrics": watch.metrics("images_per_second"), "batch": count})


@dataclass(frozen=True)
class SynthesisSpeed(Cell):
    """Throughput of drawing without guidance, with the machine to itself."""

    setup: Setup
    sampler: DDIM
    count: int

    ALONE: ClassVar[bool] = True

    def seconds(self) -> float:
        return 2.0 + REPEATS * self.count * self.sampler.steps * self.setup.denoise_seconds() / 1.5

    def compute(self, load: Load) -> Artifact:
        denoiser = self.setup.load().denoiser().to(device())
        count, fast = self.count, self.setup.fast_with(denoiser)
        synthesize(denoiser, count, self.sampler, batch=count, fast=fast)
        with Stopwatch() as watch:
            for repeat in range(REPEATS):
                first = repeat * count
                synthesize(denoiser, count, self.sampler, first, batch=count, fast=fast)
                watch.lap(count)
        return Artifact({"metrics": watch.metrics("synthesis_per_second"), "batch": count})


@dataclass(frozen=True)
class TransferSpeed(Cell):
    """Throughput and memory of training experts, with the machine to itself."""

    experts: Experts

    ALONE: ClassVar[bool] = True

    def inputs(self) -> Iterator[Cell]:
        yield from self.experts.inputs()

    def label(self) -> str:
        return f"speed of training {self.experts.label()}"

    def seconds(self) -> float:
        return 2.0 + (WARM_STEPS + REPEATS * TIMED_STEPS) * train_seconds(self.experts.predictor)

    def compute(self, load: Load) -> Artifact:
        setting = self.experts.setup.load()
        images, labels = self.experts.training_set(load)
        kept = slice(0, 10 * self.experts.training.batch)
        images, labels = images[kept], None if labels is None else labels[kept]
        schedule = setting.denoiser().schedule
        training = replace(self.experts.training, steps=WARM_STEPS + REPEATS * TIMED_STEPS)
        bank = self.experts.blank(load)
        one = ExpertBank(
            bank.predictor, 1, self.experts.adapter, normalised=self.experts.normalised
        )
        objective, compiled = self.experts.objective(labels), self.experts.compiled
        with Stopwatch() as watch:

            def progress(done: int, total: int, **facts: object) -> None:
                del total, facts
                if done <= WARM_STEPS:
                    watch.start()
                elif (done - WARM_STEPS) % TIMED_STEPS == 0:
                    watch.lap(TIMED_STEPS * training.batch)

            transfer(
                one, schedule, images, objective, training, progress=progress, compile=compiled
            )
        return Artifact({"metrics": watch.metrics("transfer_per_second"), "batch": training.batch})


class Stopwatch:
    """Rates of repeated work, and the peak memory meanwhile."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def __enter__(self) -> Self:
        gc.collect()
        reset_peak_memory()
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak = peak_memory_mib()

    def start(self) -> None:
        """Work begins only now."""
        self.began = time.perf_counter()

    def lap(self, count: int) -> None:
        """``count`` images were finished since the last lap."""
        now = time.perf_counter()
        self.rates.append(count / (now - self.began))
        self.began = now

    def metrics(self, rate: str) -> dict[str, float]:
        """Median rate under a name, and the peak memory."""
        return {rate: float(np.median(self.rates)), "peak_memory_mib": self.peak}
