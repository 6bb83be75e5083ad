"""Expert banks as cells: trained without data or with labels, over ranges given or measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ablations.cells.predictors import (
    Pretrained,
    expert_bytes,
    load_predictor,
    predictor_name,
    train_seconds,
)
from ablations.cells.setup import PER_MILLE, Setup
from ablations.cells.synthesis import TrainingData
from ablations.machine.cell import Cell, Load
from ablations.machine.kept import Kept
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Supervision
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training
from ppap.experts.training_files import seconds_spent
from ppap.experts.transfer import transfer
from ppap.files.checkpoints import CheckpointError
from ppap.files.images import Images, from_uint8
from ppap.tasks.protocol import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["BalancedRanges", "Experts"]

STEPS_BETWEEN_WRITES = 500
"""A training that is interrupted loses less than so many."""
STEPS_WORTH_COMPILING = 1_000
"""Every adapter, rank and temperature has a graph of its own, which takes a minute to compile: as
long as fewer steps take."""


@dataclass(frozen=True)
class BalancedRanges(Cell):
    """Noise ranges of equal transfer loss, as measured on a bank of one expert."""

    experts: Experts
    count: int
    images: int = 100
    timesteps: tuple[int, ...] = tuple(range(10, 1000, 20))

    def inputs(self) -> Iterator[Cell]:
        yield from self.experts.bank_inputs()
        yield from self.experts.data.shards

    def label(self) -> str:
        return "ranges of equal transfer loss"

    def seconds(self) -> float:
        return len(self.timesteps) * self.images * 0.0004

    def compute(self, load: Load) -> Artifact:
        bank, task = self.experts.bank(load), self.experts.transferred_task()
        schedule = self.experts.setup.load().denoiser().schedule
        images, _ = self.experts.training_set(load)
        x_0 = from_uint8(images[: self.images])
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        teacher = bank.teacher_prediction(x_0.to(device()))
        losses = []
        for timestep in self.timesteps:
            t = torch.full((len(x_0),), timestep * len(schedule) // PER_MILLE)
            with torch.no_grad():
                student = bank(schedule.add_noise(x_0, t, noise).to(device()), t)
                losses.append(float(task.transfer_loss(student, teacher)))
        places = np.arange(len(schedule)) * PER_MILLE / len(schedule)
        per_timestep = np.interp(places, self.timesteps, losses)
        ranges = NoiseRanges.balanced(torch.from_numpy(per_timestep), self.count)
        return Artifact({"boundaries": ranges.boundaries, "losses": losses})


@dataclass(frozen=True)
class Experts(Cell):
    """A trained expert bank.

    Attributes:
        predictor: of the setting, by name, or one trained here.
        ranges: the noise range of each expert, or how they are found.
        data: what it is trained on; its kind decides between transfer and supervision.
        temperature: of the teacher, in data-free transfer.
        normalised: whether the experts see normalised images, as the teacher does.
        task: of the setting, by name.
    """

    setup: Setup
    predictor: str | Pretrained
    ranges: NoiseRanges | BalancedRanges
    adapter: Adapter
    training: Training
    data: TrainingData
    temperature: float = 0.25
    normalised: bool = True
    task: str = "class"

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from self.data.shards

    @property
    def count(self) -> int:
        """How many experts."""
        return self.ranges.count if isinstance(self.ranges, BalancedRanges) else len(self.ranges)

    @property
    def compiled(self) -> bool:
        """Whether the training step is compiled."""
        return self.setup.fast and self.training.steps >= STEPS_WORTH_COMPILING

    @property
    def version(self) -> int:
        """2 where gradients were laid out otherwise than the weights to which the optimiser added.

        Of the parts of adapters these train the weights of convolutions, which graphs compute
        channels-last.
        """
        weights = any(isinstance(part, Full | Peft) for part in self.adapter.parts)
        return 2 if self.compiled and weights else self.VERSION

    def bank_inputs(self) -> Iterator[Cell]:
        """The cells that :meth:`bank` reads."""
        yield self
        yield from super().inputs()

    def label(self) -> str:
        kind, name, count = self.data.supervision, predictor_name(self.predictor), self.count
        return f"{count} {kind} {name} expert{'s' * (count > 1)}, seed {self.training.seed}"

    def seconds(self) -> float:
        step = train_seconds(self.predictor)
        return 1.0 + self.training.steps * self.training.batch / 64 * step

    def size(self) -> int:
        return super().size() + self.count * expert_bytes(self.predictor)

    def blank(self, load: Load) -> ExpertBank:
        """The bank before training."""
        predictor = load_predictor(self.setup, self.predictor, load).to(device())
        ranges = self.ranges
        if isinstance(ranges, BalancedRanges):
            ranges = NoiseRanges(tuple(load(ranges).meta["boundaries"]))
        seed, normalised = self.training.seed, self.normalised
        return ExpertBank(predictor, ranges, self.adapter, seed=seed, normalised=normalised)

    def bank(self, load: Load) -> ExpertBank:
        """The trained bank."""
        bank = self.blank(load)
        arrays = load(self).arrays
        state = {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}
        bank.experts.load_state_dict(state)
        return bank.eval()

    def training_set(self, load: Load) -> tuple[Images, Tensor | None]:
        """(N, C, H, W) uint8 images and, if labelled, (N, ...) targets."""
        return self.data.load(self.setup.load(), self.task, load)

    def transferred_task(self) -> Task:
        """The task as the experts are trained on it."""
        return self.setup.load().tasks[self.task].transferred(self.temperature)

    def objective(self, targets: Tensor | None) -> Supervision | Distillation:
        """Targets are followed where there are any, the teacher otherwise."""
        if targets is None:
            return Distillation(self.transferred_task())
        return Supervision(targets, self.transferred_task())

    def resume(self, load: Load, kept: Kept) -> Artifact:
        return self.train(load, kept, None)

    def train(self, load: Load, kept: Kept, accelerator: Accelerator | None) -> Artifact:
        """Train the bank, on several processes and in mixed precision if accelerate says so.

        It goes on from what was kept; what is damaged, or of other weights or another device, is
        of no use.
        """
        bank = self.blank(load)
        images, targets = self.training_set(load)
        setting = self.setup.load()
        training = partial(
            transfer,
            bank,
            setting.denoiser().schedule,
            images,
            self.objective(targets),
            self.training,
            flips=setting.mirrored,
            progress=lambda *_, **__: kept.save(),
            accelerator=accelerator,
            compile=self.compiled,
            file=kept.path,
            every=STEPS_BETWEEN_WRITES,
        )
        try:
            kept.seconds = seconds_spent(kept.path)
            losses = training()
        except CheckpointError:
            kept.remove()
            kept.seconds = 0.0
            losses = training()
        state = {key: value.cpu().numpy() for key, value in bank.experts.state_dict().items()}
        facts = {
            "losses": losses,
            "trainable_share": bank.trainable_share,
            "boundaries": bank.ranges.boundaries,
        }
        return Artifact(facts, state)
