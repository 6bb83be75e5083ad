"""What a method costs, what its guide believes, and the row that has both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ablations.cells.peers import PeerSamples, Search, networks_of
from ablations.cells.results import Row
from ablations.cells.scores import Score
from ablations.cells.speed import Stopwatch
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.diffusion.ddim import DDIM
from ppap.fast.sampling import sample
from ppap.files.images import from_uint8
from ppap.guidance.likelihoods import AtLeastNoise, ImageLikelihood, NoisyLikelihood

__all__ = ["Belief", "Evaluations", "PeerCost", "PeerRow"]

REPEATS = 3


class Evaluations:
    """Counts images that go forward and backward through networks while it is entered."""

    def __init__(self, *networks: nn.Module) -> None:
        self.forward = 0
        self.backward = 0
        self._networks = networks

    def __enter__(self) -> Self:
        unique = {id(network): network for network in self._networks}.values()
        self._hooks = [network.register_forward_hook(self._seen) for network in unique]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _seen(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        del network
        count = len(inputs[0])
        self.forward += count
        found = output if isinstance(output, Tensor) else getattr(output, "epsilon", None)
        if isinstance(found, Tensor) and found.requires_grad:
            found.register_hook(lambda gradient: self._back(count))

    def _back(self, count: int) -> None:
        self.backward += count


@dataclass(frozen=True)
class PeerCost(Cell):
    """Network evaluations, seconds and memory of an image, with the machine to itself.

    Every timed batch is followed by one of unguided images, so that how many times as long a
    guided image takes is no matter of the machine, nor of what else it did at the time.

    Attributes:
        samples: whose method it is.
        count: images of a timed batch.
        unguided: what the unguided images are drawn by.
    """

    samples: PeerSamples
    count: int
    unguided: DDIM

    VERSION: ClassVar[int] = 2
    ALONE: ClassVar[bool] = True

    def inputs(self) -> Iterator[Cell]:
        yield from self.samples.guidance_inputs()

    def label(self) -> str:
        return f"cost of {self.samples.guided_by}"

    def seconds(self) -> float:
        alone = self.unguided.steps * self.samples.setup.denoise_seconds()
        return 2.0 + (REPEATS + 1) * self.count * (self.samples.image_seconds() + alone) / 1.5

    def compute(self, load: Load) -> Artifact:
        seeds = range(self.count)
        denoiser, guide, sampler, likelihood = self.samples.prepared(load, seeds)
        with Evaluations(denoiser) as denoising, Evaluations(*networks_of(likelihood)) as seen:
            sample(denoiser, seeds, guide, sampler, batch=self.count, fast=False)
        fast = self.samples.setup.fast_with(denoiser)
        if fast:  # what is counted above has warmed up the plain path
            sample(denoiser, seeds, guide, sampler, batch=self.count, fast=True)
        sample(denoiser, seeds, None, self.unguided, batch=self.count, fast=fast)
        unguided = Stopwatch()
        with Stopwatch() as watch:
            for _ in range(REPEATS):
                watch.start()
                sample(denoiser, seeds, guide, sampler, batch=self.count, fast=fast)
                watch.lap(self.count)
                unguided.start()
                sample(denoiser, seeds, None, self.unguided, batch=self.count, fast=fast)
                unguided.lap(self.count)
        timed = watch.metrics("images_per_second")
        metrics = {
            "denoiser_forward": denoising.forward / self.count,
            "denoiser_backward": denoising.backward / self.count,
            "predictor_forward": seen.forward / self.count,
            "predictor_backward": seen.backward / self.count,
            "seconds_per_image": 1 / timed["images_per_second"],
            "relative_seconds": float(np.median(np.divide(unguided.rates, watch.rates))),
            "peak_memory_mib": timed["peak_memory_mib"],
        }
        return Artifact({"metrics": metrics})


@dataclass(frozen=True)
class Belief(Cell):
    """How good the guide itself finds its samples, by the metric of its (first) task.

    Attributes:
        score: the judge's, of the same samples.
    """

    score: Score

    def inputs(self) -> Iterator[Cell]:
        yield self.score
        yield self.score.samples
        assert isinstance(self.score.samples, PeerSamples)
        yield from self.score.samples.guidance_inputs()

    def label(self) -> str:
        return f"belief of {self.score.samples.guided_by}"

    def compute(self, load: Load) -> Artifact:
        samples = self.score.samples
        assert isinstance(samples, PeerSamples)
        which = samples.guidance[0].model.task
        task = samples.setup.load().tasks[which]
        name, higher = task.selection.metric, task.selection.higher_is_better
        first = samples.likelihood(load, samples.seeds, dict(samples.chosen(load).options))
        first = getattr(first, "parts", (first,))[0]
        assert isinstance(first, ImageLikelihood | NoisyLikelihood)
        look = first.predictor if isinstance(first, ImageLikelihood) else AtLeastNoise(first.model)
        images = from_uint8(torch.from_numpy(load(samples).arrays["images"].copy()))
        with torch.no_grad():
            seen = [torch.as_tensor(look(part.to(device()))).cpu() for part in images.split(128)]
        values = task.figures(name, torch.cat(seen), samples.targets(which))
        believed, judged = float(np.mean(values)), float(load(self.score).meta[name])
        gap = believed - judged if higher else judged - believed
        return Artifact({"belief": believed, "gap": gap})


@dataclass(frozen=True)
class PeerRow(Row):
    """A row of a method: its figures, its cost, its search, and what its guide believes.

    Attributes:
        search: of its options.
        cost: of one image.
        beliefs: one per seed.
    """

    search: Search | None = None
    cost: PeerCost | None = None
    beliefs: tuple[Belief, ...] = ()

    def preparation_seconds(self, load: Load) -> float:
        """Before the first image: training of the experts, mean over seeds, and what it saw."""
        if not self.banks:
            return 0.0

        def seconds(cells: Iterable[Cell]) -> float:
            return float(sum(load(cell).meta["provenance"]["wall_seconds"] for cell in cells))

        return seconds(self.banks) / len(self.seeds) + seconds(self.banks[0].data.shards)

    @property
    def preparation_passes(self) -> int:
        """Of images through the denoiser, before the first image: for what experts learn from."""
        drawn = self.banks[0].data.shards if self.banks else ()
        return sum(shard.count * shard.sampler.steps for shard in drawn)

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from (shard for bank in self.banks for shard in bank.data.shards)

    def compute(self, load: Load) -> Artifact:
        record = super().compute(load).meta["record"]
        record["preparation_seconds"] = self.preparation_seconds(load)
        record["preparation_passes"] = self.preparation_passes
        if self.cost is not None:
            record |= load(self.cost).meta["metrics"]
        if self.search is not None:
            found = load(self.search).meta
            record |= {"trial": found["trial"], "search": found["history"]}
        if self.beliefs:
            beliefs = [load(belief).meta for belief in self.beliefs]
            record |= {
                name: float(np.mean([found[name] for found in beliefs]))
                for name in ("belief", "gap")
            }
        return Artifact({"record": record})
