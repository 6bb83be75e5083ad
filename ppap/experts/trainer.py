"""Training steps: what is drawn, the loss, the optimiser, and processes that share a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppap.compute.precision import Precision, autocast
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.streams import derived_generator
from ppap.experts.bank import ExpertBank
from ppap.experts.expert import Expert
from ppap.experts.objectives import Loss
from ppap.experts.together import JointStep
from ppap.experts.training import Training
from ppap.files.images import Images, from_uint8

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Trainer"]


@dataclass
class Trainer:
    """What the trainings of one bank's experts share.

    Attributes:
        bank: in training mode.
        images: (N, C, H, W) uint8.
        schedule: of the noise.
        loss: of predictions for chosen images.
        training: batch and optimiser.
        report: called after each step as ``report(1, loss=...)``.
        accelerator: averages over processes and scales mixed precision.
        compile: whether joint steps are compiled.
        precision: in which students compute, unless the accelerator has its own.
        done: steps so far, of all experts.
        optimiser_state: of the expert before, where it is kept.
    """

    bank: ExpertBank
    images: Images
    schedule: Schedule
    loss: Loss
    training: Training
    report: Callable[..., None]
    accelerator: Accelerator | None = None
    compile: bool = False
    precision: Precision = "fp32"
    done: int = 0
    optimiser_state: list[dict[str, Any]] | None = None

    def fit(self, number: int, bounds: tuple[int, int], steps: int) -> float:
        """Train one expert on timesteps in [low, high).

        Returns:
            Its mean loss over the last tenth of the steps.
        """
        expert = self.bank.expert(number)
        optimiser = self._optimiser(list(expert.parameters()))
        if self.optimiser_state is not None:
            for parameter, state in zip(expert.parameters(), self.optimiser_state, strict=True):
                optimiser.state[parameter] = state
        steady = self._prepared(optimiser)
        last = []
        for step in range(steps):
            self._anneal(optimiser, step, steps)
            last.append(self._descend(steady, expert, number, bounds))
            self._count(last[-1])
        if self.accelerator is not None:
            for buffer in expert.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._average(buffer))
        if self.training.keep_optimiser:
            self.optimiser_state = [optimiser.state[p] for p in expert.parameters()]
        return _late_mean(last)

    def fit_together(self, steps: int) -> float:
        """Train all experts at once, each on its own range; returns the mean loss as above."""
        joint = JointStep(self.bank, self.loss, self.compile, self.precision)
        optimiser = self._optimiser([joint.parameters])
        bounds = [self.bank.ranges.bounds(number) for number in range(len(self.bank))]
        share = self.training.batch // len(self.bank)
        last = []
        for step in range(steps):
            self._anneal(optimiser, step, steps)
            chosen, x_t = self._draw(bounds)
            last.append(joint(x_t.view(-1, share, *x_t.shape[1:]), chosen.view(-1, share)))
            optimiser.step()
            self._count(last[-1])
        joint.write_back()
        return _late_mean(last)

    def _optimiser(self, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
        rate, decay = self.training.learning_rate, self.training.weight_decay
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)

    def _anneal(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Linearly to 0 within one expert's share of the steps, as in the released code."""
        optimiser.param_groups[0]["lr"] = self.training.learning_rate * (1 - step / steps)

    def _count(self, loss: float) -> None:
        self.done += 1
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
        own = autocast(self.precision, x_t.device)
        with self.accelerator.autocast() if self.accelerator else own:
            value = self.loss(self.bank.predict(x_t, number), chosen)
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

    def _own_part(self, draws: Tensor) -> Tensor:
        """The part of a batch that is this process's."""
        if self.accelerator is None:
            return draws
        return draws[self.accelerator.process_index :: self.accelerator.num_processes]

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
        chosen, timesteps, noise = map(self._own_part, (chosen, timesteps, noise))
        x_t = self.schedule.add_noise(from_uint8(self.images[chosen]), timesteps, noise)
        return chosen, x_t.to(next(self.bank.parameters()).device)


def _late_mean(losses: list[float]) -> float:
    """Over the last tenth of the steps."""
    late = losses[len(losses) - max(1, len(losses) // 10) :] if losses else [float("nan")]
    return sum(late) / len(late)
