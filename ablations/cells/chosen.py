"""Which refinement suits these samples: chosen by the off-the-shelf predictor, without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import Tensor

from ablations.cells.guidance import Model
from ablations.cells.predictors import load_predictor
from ablations.cells.refined import Refinement
from ablations.cells.samples import AnySampler
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.diffusion.schedule import linear_schedule
from ppap.fast.best import best_preset

__all__ = ["ChosenRefinement"]


@dataclass(frozen=True)
class ChosenRefinement(Cell):
    """What :func:`ppap.fast.best.best_preset` finds for a model's experts: ``refinement``.

    Attributes:
        setup: of the setting.
        model: what guides; its own predictor, without experts, looks at the images.
        sampler: draws them.
        refinements: to choose from, by name; the others are compared with the first one.
        scales: that are tried.
        first_seed: of the images that guide none but this choice.
        count: how many there are for each scale of each refinement.
    """

    setup: Setup
    model: Model
    sampler: AnySampler
    refinements: tuple[tuple[str, Refinement], ...]
    scales: tuple[float, ...]
    first_seed: int
    count: int

    VERSION: ClassVar[int] = 2

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()

    def label(self) -> str:
        return f"choice among {len(self.refinements)} refinements of {self.model.name}"

    def seconds(self) -> float:
        step = self.setup.denoise_seconds() + self.model.image_seconds()
        trials = len(self.refinements) * len(self.scales)
        return trials * self.count * len(self.sampler.respace(linear_schedule())) * step

    def compute(self, load: Load) -> Artifact:
        setting = self.setup.load()
        denoiser, task = setting.denoiser().to(device()), setting.tasks[self.model.task]
        seeds = range(self.first_seed, self.first_seed + self.count)
        targets = task.targets(setting.order.numbers(self.first_seed, range(self.count)))
        predictor = load_predictor(self.setup, self.model.predictor, load).to(device())

        def score(images: Tensor) -> Tensor:
            return task.task.score(predictor(images.to(device())), targets.to(device())).cpu()

        fast, precision = self.setup.fast_with(denoiser), self.setup.precision
        found = best_preset(
            denoiser,
            lambda scale: self.model.guide(self.setup, load, targets, scale),
            score,
            seeds,
            presets={
                name: refinement.preset(self.sampler, fast, precision)
                for name, refinement in self.refinements
            },
            scales=self.scales,
            batch=self.setup.batch_for(self.count),
        )
        return Artifact(
            {
                "refinement": asdict(dict(self.refinements)[found.name]),
                "name": found.name,
                "scale": found.scale,
                "gain": found.gain,
                "tried": [asdict(trial) for trial in found.tried],
            }
        )
