"""Training experts: knowledge transfer without data, or with labels for comparison.

For expert n: t ~ U(range n), x_t ~ q(x_t | x_0), and either the student's prediction for
x_t is drawn to the teacher's for the clean x_0 (data-free, the paper's way) or to a label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ppap.compute.allocator import keep_freed_memory
from ppap.compute.precision import Precision, autocast, choose_precision
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.streams import derived_generator
from ppap.experts.bank import Expert, ExpertBank
from ppap.experts.together import JointStep
from ppap.files.images import Images, from_uint8
from ppap.tasks.protocol import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Distillation", "Objective", "Supervision", "Training", "transfer"]

Start = Literal["previous", "base", "shared"]
Order = Literal["ascending", "descending", "together"]


@dataclass(frozen=True)
class Training:
    """Budget and optimiser of a whole bank.

    Attributes:
        steps: optimiser steps in total; each of N experts gets steps / N, as in the paper.
        batch: images per step.
        learning_rate: AdamW's, annealed linearly to 0 within each expert's share.
        weight_decay: AdamW's.
        start: what an expert starts from: ``"previous"``, the one trained before it, which
            is what the released code does; ``"base"``, the unadapted
            predictor; ``"shared"``, one expert trained on all ranges for ``shared_share``
            of the steps.
        shared_share: of the steps, spent on the shared start; used by ``"shared"`` alone.
        seed: of every draw.
        order: in which experts are trained: low noise to high, as in the released code, high
            to low, or all at once, each step on a batch that they share evenly. The last needs
            another start than ``"previous"`` and a batch that N divides; it sees as many images
            in as many steps, and costs less time where networks are small.
        keep_optimiser: whether one optimiser's state goes on from expert to expert, as in
            the released code; by default each expert has a fresh one.
        precision: in which the students compute; weights and optimiser stay in float32.
            ``"auto"`` is bfloat16 where the device has it natively, else float32.

    Raises:
        ValueError: for a budget without steps, an unknown start, order or precision, or a share
            outside (0, 1).
    """

    steps: int = 300_000
    batch: int = 256
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    start: Start = "previous"
    shared_share: float = 0.5
    seed: int = 0
    order: Order = "ascending"
    keep_optimiser: bool = False
    precision: Precision | Literal["auto"] = "fp32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"training needs steps and a batch, got {self.steps}, {self.batch}")
        if self.start not in ("previous", "base", "shared"):
            raise ValueError(f"unknown start {self.start!r}; choose previous, base or shared")
        if not 0 < self.shared_share < 1:
            raise ValueError(f"shared_share must lie in (0, 1), got {self.shared_share}")
        if self.order not in get_args(Order):
            raise ValueError(f"unknown order {self.order!r}; choose from {get_args(Order)}")
        if self.order == "together" and self.start == "previous":
            raise ValueError("experts trained together have no previous one; choose another start")
        if self.precision not in ("auto", *get_args(Precision)):
            raise ValueError(f"unknown precision {self.precision!r}; choose fp32, bf16 or auto")


class Objective(Protocol):
    """The loss of one batch."""

    def prepare(self, bank: ExpertBank, images: Images) -> None:
        """Called once before training, with all (N, C, H, W) uint8 images."""
        ...

    def loss(self, prediction: Any, chosen: Tensor) -> Tensor:
        """Scalar loss of predictions for the (B,) chosen images."""
        ...


class Distillation:
    """Data-free transfer: follow the teacher's prediction for the clean image.

    The teacher sees each image once; its predictions are kept.
    """

    def __init__(self, task: Task, batch: int = 500) -> None:
        self.task = task
        self.batch = batch
        self._taught = torch.empty(0)

    def prepare(self, bank: ExpertBank, images: Images) -> None:
        device = next(bank.parameters()).device
        starts = range(0, len(images), self.batch)
        parts = (images[start : start + self.batch] for start in starts)
        self._taught = torch.cat(
            [bank.teacher_prediction(from_uint8(part).to(device)) for part in parts]
        )

    def loss(self, prediction: Any, chosen: Tensor) -> Tensor:
        return self.task.transfer_loss(prediction, self._taught[chosen.to(self._taught.device)])


class Supervision:
    """Labelled training: (N, ...) targets, one per image."""

    def __init__(self, task: Task, targets: Tensor) -> None:
        self.task = task
        self.targets = targets

    def prepare(self, bank: ExpertBank, images: Images) -> None:
        if len(self.targets) != len(images):
            raise ValueError(f"{len(images)} images need as many labels, got {len(self.targets)}")
        self.targets = self.targets.to(next(bank.parameters()).device)

    def loss(self, prediction: Any, chosen: Tensor) -> Tensor:
        return self.task.supervised_loss(prediction, self.targets[chosen.to(self.targets.device)])


def transfer(
    bank: ExpertBank,
    images: Images,
    schedule: Schedule,
    objective: Objective,
    training: Training,
    progress: Callable[[int, float], None] | None = None,
    accelerator: Accelerator | None = None,
    compile: bool = False,
) -> list[float]:
    """Train every expert of a bank.

    Under ``accelerate launch`` or ``torchrun`` each process trains on its share of every batch
    and gradients are averaged, so that several processes give what one does, batch norms aside,
    whose statistics are those of the shares. (On CPUs without MPI the former starts one process.)

    Args:
        bank: its experts are trained in place, one after another.
        images: (N, C, H, W) uint8, synthetic or real.
        schedule: the denoiser's full schedule.
        objective: :class:`Distillation` or :class:`Supervision`.
        training: budget and optimiser.
        progress: called after each step with (step of the whole training, loss).
        accelerator: Hugging Face accelerate's, for mixed precision and several processes;
            move the bank to its device first.
        compile: whether the step of experts trained together is compiled, which takes up to a
            minute and makes it about 1.7 times as fast on a CPU; other orders ignore it.

    Returns:
        Mean loss over the last tenth of each expert's steps, low noise to high.

    Raises:
        ValueError: if there are no images, the bank's ranges and the schedule differ in
            length, processes cannot share the batch evenly, the device would emulate the
            precision asked for, or an accelerator brings one of its own.
    """
    if len(images) == 0:
        raise ValueError("transfer needs at least one image")
    if bank.ranges.boundaries[-1] != len(schedule):
        raise ValueError(
            f"the bank's ranges end at {bank.ranges.boundaries[-1]}, "
            f"the schedule at {len(schedule)}"
        )
    workers = accelerator.num_processes if accelerator else 1
    if training.batch % workers:
        raise ValueError(
            f"{workers} processes cannot share batches of {training.batch} evenly; "
            "choose a multiple"
        )
    if training.order == "together" and (training.batch % len(bank) or accelerator):
        raise ValueError(
            f"{len(bank)} experts trained together share batches evenly, in one process; "
            f"got a batch of {training.batch}" + " and an accelerator" * bool(accelerator)
        )
    if accelerator and training.precision != "fp32":
        raise ValueError(
            f"an accelerator has a precision of its own; leave the training's {training.precision}"
            " at fp32, and choose Accelerator(mixed_precision=...)"
        )
    precision = choose_precision(training.precision, next(bank.parameters()).device)
    keep_freed_memory()
    objective.prepare(bank, images)
    run = _Run(
        bank, images, schedule, objective, training, progress, accelerator, compile, precision
    )
    bank.train()
    first_share = 0
    if training.start == "shared" and len(bank) > 1:
        first_share = round(training.steps * training.shared_share)
        run.fit(0, (0, len(schedule)), first_share)
        for number in range(1, len(bank)):
            bank.copy_expert(0, number)
    if training.order == "together":
        found = run.fit_together(training.steps - first_share)
        bank.eval()
        return found
    order = list(range(len(bank)))
    if training.order == "descending":
        order.reverse()
    losses = dict.fromkeys(range(len(bank)), float("nan"))
    previous: int | None = None
    for place, number in enumerate(order):
        if previous is not None and training.start == "previous":
            bank.copy_expert(previous, number)
        share = _share(training.steps - first_share, place, len(bank))
        losses[number] = run.fit(number, bank.ranges.bounds(number), share)
        previous = number
    bank.eval()
    return list(losses.values())


def _share(total: int, number: int, count: int) -> int:
    """Steps of one expert: the total, split as evenly as integers allow."""
    return (number + 1) * total // count - number * total // count


@dataclass
class _Run:
    """What the trainings of one bank's experts share."""

    bank: ExpertBank
    images: Images
    schedule: Schedule
    objective: Objective
    training: Training
    progress: Callable[[int, float], None] | None
    accelerator: Accelerator | None
    compile: bool = False
    precision: Precision = "fp32"
    done: int = 0
    optimiser_state: list[dict[str, Any]] | None = None

    def fit(self, number: int, bounds: tuple[int, int], steps: int) -> float:
        """Train one expert on timesteps in [low, high)."""
        expert = self.bank.expert(number)
        optimiser = torch.optim.AdamW(
            expert.parameters(),
            self.training.learning_rate,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        if self.optimiser_state is not None:
            for parameter, state in zip(expert.parameters(), self.optimiser_state, strict=True):
                optimiser.state[parameter] = state
        steady = self._prepared(optimiser)
        last: list[float] = []
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = self.training.learning_rate * (1 - step / steps)
            loss = self._descend(steady, expert, number, bounds)
            self.done += 1
            if step >= steps - max(1, steps // 10):
                last.append(loss)
            if self.progress is not None:
                self.progress(self.done, loss)
        if self.accelerator is not None:
            for buffer in expert.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._average(buffer))
        if self.training.keep_optimiser:
            self.optimiser_state = [optimiser.state[p] for p in expert.parameters()]
        return sum(last) / len(last) if last else float("nan")

    def fit_together(self, steps: int) -> list[float]:
        """Train all experts at once, each on its own range."""
        joint = JointStep(self.bank, self.objective.loss, self.compile, self.precision)
        optimiser = torch.optim.AdamW(
            [joint.parameters],
            self.training.learning_rate,
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        last: list[float] = []
        share = self.training.batch // len(self.bank)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = self.training.learning_rate * (1 - step / steps)
            bounds = [self.bank.ranges.bounds(number) for number in range(len(self.bank))]
            chosen, x_t = self._draw(bounds)
            loss = joint(x_t.view(-1, share, *x_t.shape[1:]), chosen.view(-1, share))
            optimiser.step()
            self.done += 1
            if step >= steps - max(1, steps // 10):
                last.append(loss)
            if self.progress is not None:
                self.progress(self.done, loss)
        joint.write_back()
        return [sum(last) / len(last) if last else float("nan")] * len(self.bank)

    def _prepared(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if self.accelerator is None:
            return optimiser
        from accelerate.optimizer import AcceleratedOptimizer

        # Not accelerator.prepare, which would hold every expert's state until its own end.
        prepared: torch.optim.Optimizer = AcceleratedOptimizer(
            optimiser, scaler=self.accelerator.scaler
        )
        return prepared

    def _descend(
        self, optimiser: torch.optim.Optimizer, expert: Expert, number: int, bounds: tuple[int, int]
    ) -> float:
        """One step of the optimiser; the loss, averaged over processes."""
        device = next(self.bank.parameters()).device
        with self.accelerator.autocast() if self.accelerator else autocast(self.precision, device):
            value = self._loss(number, bounds)
        optimiser.zero_grad()
        if self.accelerator is None:
            value.backward()  # type: ignore[no-untyped-call]
        else:
            self.accelerator.backward(value)
            for parameter in expert.parameters():
                if parameter.grad is not None:
                    parameter.grad = self._average(parameter.grad)
            value = self._average(value.detach())
        optimiser.step()
        return float(value.detach())

    def _average(self, tensor: Any) -> Any:
        """Over processes."""
        assert self.accelerator is not None
        return self.accelerator.reduce(tensor, "mean")

    def _share(self, draws: Tensor) -> Tensor:
        """The part of a batch that is this process's."""
        if self.accelerator is None:
            return draws
        return draws[self.accelerator.process_index :: self.accelerator.num_processes]

    def _loss(self, number: int, bounds: tuple[int, int]) -> Tensor:
        chosen, x_t = self._draw([bounds])
        return self.objective.loss(self.bank.predict(x_t, number), chosen)

    def _draw(self, bounds: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(B,) images chosen, and their noisy forms; timesteps by equal shares from each range."""
        # Draws depend on the seed and the step alone, so an arm that differs in one thing
        # sees the same images and noise everywhere else.
        generator = derived_generator(self.training.seed, self.done)
        size = (self.training.batch,)
        chosen = torch.randint(len(self.images), size, generator=generator)
        share = (self.training.batch // len(bounds),)
        timesteps = torch.cat([torch.randint(*b, share, generator=generator) for b in bounds])
        noise = torch.randn((*size, *self.images.shape[1:]), generator=generator)
        chosen, timesteps, noise = map(self._share, (chosen, timesteps, noise))
        x_t = self.schedule.add_noise(from_uint8(self.images[chosen]), timesteps, noise)
        return chosen, x_t.to(next(self.bank.parameters()).device)
