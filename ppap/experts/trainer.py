"""Training steps: what is drawn, the loss, the optimiser, and processes that share a batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppap.compute.precision import Precision, autocast, in_float32
from ppap.diffusion.schedule import Schedule
from ppap.experts.bank import ExpertBank
from ppap.experts.compiled_step import check_has_gradient, laid_out_like
from ppap.experts.draws import Draws
from ppap.experts.expert import Expert
from ppap.experts.in_turn import ExpertStep
from ppap.experts.objectives import Loss
from ppap.experts.together import JointStep
from ppap.experts.training import Training
from ppap.experts.training_files import Position, TrainingFile
from ppap.files.images import Images, NonFiniteError, from_uint8

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Trainer"]

MOST = 0.5
"""Share of what is trained that has no gradient, from which on that is warned of."""


@dataclass
class Trainer:
    """What the trainings of one bank's experts share.

    Attributes:
        bank: in training mode.
        images: (N, C, H, W) uint8.
        schedule: of the noise.
        loss: what predictions are compared with, and how.
        training: batch and optimiser.
        accelerator: averages over processes and scales mixed precision.
        compile: whether steps are compiled; those under an accelerator are not.
        precision: in which students compute, unless the accelerator has its own.
        report: called after each step as ``report(1, loss=...)``.
        file: keeps the training's state.
        every: steps between two writes of the file.
        position: where the training is; its optimiser's state is what the next stage begins with.
        noticed: whether it was looked at which tensors have no gradient.
    """

    bank: ExpertBank
    images: Images
    schedule: Schedule
    loss: Loss
    training: Training
    accelerator: Accelerator | None = None
    compile: bool = False
    precision: Precision = "fp32"
    report: Callable[..., None] = lambda *units, **facts: None
    file: TrainingFile | None = None
    every: int = 1000
    position: Position = field(default_factory=lambda: Position(0, [], []))
    noticed: bool = False

    def fit(self, number: int, bounds: tuple[int, int], steps: int) -> None:
        """A stage of the training: one expert on timesteps in [low, high)."""
        expert = self.bank.expert(number)
        optimiser = self._optimiser(list(expert.parameters()))
        steady = self._prepared(optimiser)
        for step in self._steps(steps, optimiser):
            self._anneal(optimiser, step, steps)
            loss = self._descend(steady, expert, number, bounds)
            self._notice_idle(expert.parameters())
            self._count(loss)
        if self.accelerator is not None:
            for buffer in expert.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._average(buffer))
        self._finish(optimiser)

    def fit_together(self, steps: int) -> None:
        """A stage of the training: all experts at once, each on its own range."""
        joint = JointStep(self.bank, self.loss.compare, self.compile, self.precision)
        optimiser = self._optimiser(joint.parameters)
        bounds = [self.bank.ranges.bounds(number) for number in range(len(self.bank))]
        share = self.training.batch // len(self.bank)
        for step in self._steps(steps, optimiser, joint.write_back):
            self._anneal(optimiser, step, steps)
            chosen, x_t = self._draw(bounds)
            targets = self.loss.targets(chosen)
            loss = joint(x_t.view(-1, share, *x_t.shape[1:]), targets)
            self._notice_idle(joint.parameters)
            optimiser.step()
            self._count(loss)
        joint.write_back()
        self._finish(optimiser)

    def _steps(
        self,
        steps: int,
        optimiser: torch.optim.Optimizer,
        before_writing: Callable[[], None] = lambda: None,
    ) -> Iterator[int]:
        """The steps of a stage that are still to be done; the file is written between them."""
        position, parameters = self.position, optimiser.param_groups[0]["params"]
        for parameter, state in zip(parameters, position.optimiser or (), strict=False):
            optimiser.state[parameter] = _for_all(state, parameter)
        for step in range(len(position.recent), steps):
            yield step
            if self.file is not None and position.done % self.every == 0 and step + 1 < steps:
                before_writing()
                position.optimiser = [optimiser.state[p] for p in parameters]
                self.file.write(position)

    def _finish(self, optimiser: torch.optim.Optimizer) -> None:
        """End a stage; its loss is the mean over the last tenth of its steps."""
        position, parameters = self.position, optimiser.param_groups[0]["params"]
        position.losses.append(_late_mean(position.recent))
        position.recent = []
        kept = self.training.keep_optimiser
        position.optimiser = [optimiser.state[p] for p in parameters] if kept else None
        if self.file is not None:
            self.file.write(position)

    def _optimiser(self, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
        rate, decay = self.training.learning_rate, self.training.weight_decay
        fused = not any(parameter.is_complex() for parameter in parameters)
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=fused)

    def _notice_idle(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Log once what no gradient reaches; a warning where that is most of what is trained."""
        if self.noticed:
            return
        self.noticed = True
        named = zip(self.bank.expert(0).tensors(), parameters, strict=True)
        trained = [(name, tensor) for name, tensor in named if tensor.requires_grad]
        idle = {name: tensor.numel() for name, tensor in trained if tensor.grad is None}
        if idle:
            share = sum(idle.values()) / sum(tensor.numel() for _, tensor in trained)
            logging.getLogger(__name__).log(
                logging.WARNING if share > MOST else logging.INFO,
                "no gradient reaches %d of %d tensors, %.0f %% of what an expert trains, which "
                "stay as they are (%s, ...); the network leaves their layers out, or computes them "
                "without a gradient (torch.no_grad, detach)",
                len(idle), len(trained), 100 * share, ", ".join([*idle][:3]),
            )  # fmt: skip

    def _anneal(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Linearly to 0 within one expert's share of the steps, as in the released code."""
        optimiser.param_groups[0]["lr"] = self.training.learning_rate * (1 - step / steps)

    def _count(self, loss: float) -> None:
        # A gradient scaler leaves such steps out and goes on, at a smaller scale.
        scaled = self.accelerator is not None and self.accelerator.scaler is not None
        if not math.isfinite(loss) and not scaled:
            raise NonFiniteError(
                f"the loss of step {self.position.done} is {loss}; look at the learning rate, the "
                "precision and the targets"
            )
        self.position.done += 1
        self.position.recent.append(loss)
        self.report(1, loss=loss)

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
        chosen, x_t = self._draw([bounds])
        if self.compile and self.accelerator is None:
            loss = self._compiled_step(expert, x_t, self.loss.targets(chosen))
            optimiser.step()
            return float(loss)
        optimiser.zero_grad()
        parts = 1 if self.accelerator is None else self.accelerator.gradient_accumulation_steps
        losses = []
        for some, noisy in zip(chosen.chunk(parts), x_t.chunk(parts), strict=True):
            targets = self.loss.targets(some)
            own = autocast(self.precision, x_t.device)
            with self.accelerator.autocast() if self.accelerator else own:
                predictions = self.bank.predict(noisy, number)
                value = in_float32(self.loss.compare, predictions, targets)
            check_has_gradient(value, self.bank.predictor.network)
            # With inputs, torch refuses a reentrant checkpoint, whose gradient would be of the
            # network's own weights.
            inputs = [tensor for tensor in expert.parameters() if tensor.requires_grad]
            if self.accelerator is None:
                value.backward(inputs=inputs)  # type: ignore[no-untyped-call]
            else:
                # Which divides by the number of parts.
                self.accelerator.backward(value, inputs=inputs)
            losses.append(value.detach())
        value = losses[0] if parts == 1 else torch.stack(losses).mean()
        if self.accelerator is not None:
            for parameter in expert.parameters():
                if parameter.grad is not None:
                    parameter.grad = self._average(parameter.grad)
            value = self._average(value.detach())
        optimiser.step()
        return float(value.detach())

    @cached_property
    def _compiled_step(self) -> ExpertStep:
        """One for all experts, so that it is traced once."""
        return ExpertStep(self.bank, self.loss.compare, self.precision)

    def _average(self, tensor: Any) -> Any:
        """Over processes."""
        assert self.accelerator is not None
        return self.accelerator.reduce(tensor, "mean")

    def _own_part(self, draws: Tensor) -> Tensor:
        """The part of a batch that is this process's."""
        if self.accelerator is None:
            return draws
        return draws[self.accelerator.process_index :: self.accelerator.num_processes]

    def _draw(self, bounds: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(B,) images chosen, and their noisy forms; timesteps by equal shares from each range."""
        device = next(self.bank.parameters()).device
        draws = Draws(self.training.seed, self.training.batch, device)
        drawn = draws.step(self.position.done, self.images.shape, bounds)
        chosen, timesteps, noise = map(self._own_part, drawn)
        x_0 = from_uint8(self.images[chosen].to(device))
        return chosen, self.schedule.add_noise(x_0, timesteps, noise)


def _for_all(state: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state; that of a shared start is repeated where all experts go on together.

    What was read from a file is contiguous, where the parameter may be channels-last.
    """
    return {
        name: value if name == "step" else laid_out_like(value.expand_as(parameter), parameter)
        for name, value in state.items()
    }


def _late_mean(losses: list[float]) -> float:
    """Over the last tenth of the steps."""
    late = losses[len(losses) - max(1, len(losses) // 10) :] if losses else [float("nan")]
    return sum(late) / len(late)
