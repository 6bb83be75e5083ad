"""How well experts do what they were trained for, on images that they have not seen.

Learning rates are chosen by it, arm by arm, rather than by samples: it is quick, and no sample that
is compared later has a part in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablations.cells.experts import Experts
from ablations.cells.noise import NOISE_LEVELS
from ablations.cells.results import Result, provenance
from ablations.cells.setup import PER_MILLE
from ablations.cells.synthesis import Synthesis
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.files.images import from_uint8

__all__ = ["TunedRate", "Validation"]


@dataclass(frozen=True)
class Validation(Cell):
    """Loss and score of a trained bank on noisy images, mean over noise levels.

    Attributes:
        experts: the bank.
        held_out: synthetic images that no bank is trained on, where the teacher's predictions are
            the targets; None for the labelled test split and its own.
        count: of images.
        timesteps: per mille of the schedule.
    """

    experts: Experts
    held_out: Synthesis | None
    count: int
    timesteps: tuple[int, ...] = NOISE_LEVELS

    def inputs(self) -> Iterator[Cell]:
        yield from self.experts.bank_inputs()
        if self.held_out is not None:
            yield self.held_out

    def label(self) -> str:
        return f"validation of {self.experts.label()}"

    def seconds(self) -> float:
        return 0.5 + len(self.timesteps) * self.count * 0.0004

    def compute(self, load: Load) -> Artifact:
        bank, task = self.experts.bank(load), self.experts.transferred_task()
        setting = self.experts.setup.load()
        schedule = setting.denoiser().schedule
        images, targets = self.data(load)
        x_0 = from_uint8(images)
        teacher: Any = None
        if targets is None:
            with torch.no_grad():
                teacher = bank.teacher_prediction(x_0.to(device()))
                targets = task.target(teacher)
        targets = targets.to(device())
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        losses, scores = [], []
        for timestep in self.timesteps:
            t = torch.full((len(x_0),), timestep * len(schedule) // PER_MILLE)
            with torch.no_grad():
                student = bank(schedule.add_noise(x_0, t, noise).to(device()), t)
                follow = task.supervised_loss if teacher is None else task.transfer_loss
                losses.append(float(follow(student, targets if teacher is None else teacher)))
                scores.append(float(task.score(student, targets).mean()))
        means = {"loss": float(np.mean(losses)), "score": float(np.mean(scores))}
        return Artifact({**means, "losses": losses, "scores": scores})

    def data(self, load: Load) -> tuple[Tensor, Tensor | None]:
        """(N, C, H, W) uint8 images and, of the labelled ones, their (N, ...) targets."""
        if self.held_out is not None:
            drawn = load(self.held_out).arrays["images"][: self.count]
            return torch.from_numpy(drawn.copy()), None
        return self.experts.setup.load().tasks[self.experts.task].held_out(self.count)


@dataclass(frozen=True)
class TunedRate(Result):
    """The learning rate of an arm whose validation loss is least, mean over seeds.

    Attributes:
        rates: rising.
        validations: of each rate, one per seed.
    """

    rates: tuple[float, ...]
    validations: tuple[tuple[Validation, ...], ...]

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from (one.experts for row in self.validations for one in row)

    def compute(self, load: Load) -> Artifact:
        tried = []
        for rate, row in zip(self.rates, self.validations, strict=True):
            found = [load(one).meta for one in row]
            means = {name: float(np.mean([f[name] for f in found])) for name in ("loss", "score")}
            tried.append({"learning_rate": rate} | means)
        # A training that went astray is no choice.
        losses = [one["loss"] if math.isfinite(one["loss"]) else math.inf for one in tried]
        best = int(np.argmin(losses))
        every = [load(one.experts) for row in self.validations for one in row]
        record = self.head("row") | self.about.facts()
        record |= {
            "learning_rate": self.rates[best],
            "validation_loss": tried[best]["loss"],
            "validation_score": tried[best]["score"],
            "at_edge": best in (0, len(tried) - 1),
            "search": tried,
            "provenance": provenance(every) | {"configuration": {"experts": every[0].meta["cell"]}},
        }
        return Artifact({"record": record})
