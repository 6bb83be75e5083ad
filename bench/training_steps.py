"""Training steps of five experts, at once and in turn, in every way of doing it, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

import torch
from torch import Tensor

from bench.reference import (
    ReferenceExperts,
    reference_expert_step,
    reference_training_step,
)
from bench.workloads import EXPERTS, bank_of, denoiser, noisy
from ppap.compute.precision import Precision, autocast
from ppap.experts.bank import ExpertBank
from ppap.experts.in_turn import ExpertStep
from ppap.experts.together import JointStep
from ppap.tasks.classes import ClassTask

__all__ = ["BATCH", "IN_TURN", "TURN_BATCH", "WAYS", "stepper", "turn_stepper"]

BATCH, TURN_BATCH = 40, 64
WAYS = ("reference", "loop over experts", "grouped", "joint", "joint, compiled")
"""Of training five experts at once, each on its share of a batch."""
IN_TURN = ("reference", "eager", "eager, bf16", "compiled", "compiled, bf16")
"""Of training one after another, each on whole batches, as ``start="previous"`` does."""


def stepper(
    way: str, predictor: str, device: str = "cpu", batch: int = BATCH
) -> tuple[ExpertBank | ReferenceExperts, Callable[[], float]]:
    """What is trained, and one step of all experts that gives their mean loss.

    Every way sees the same images, noise and timesteps, and ends with an optimiser's step.

    Args:
        way: of :data:`WAYS`.
        predictor: of the setting.
        device: where networks and images are.
        batch: images, equally many for each expert.
    """
    bank = bank_of(predictor, device=device).train()
    task, schedule = ClassTask(), denoiser(device).schedule
    x_0, timesteps, noise = drawn(batch, device)
    share = batch // EXPERTS
    experts = torch.arange(EXPERTS, device=device).repeat_interleave(share)
    taught = bank.teacher_prediction(x_0)
    if way == "reference":
        copies = ReferenceExperts(bank)
        optimisers = [adamw(own.values()) for own in copies.own]
        return copies, lambda: reference_training_step(
            copies, optimisers, bank.predictor.eval(), x_0, timesteps, noise, schedule
        )
    if way == "loop over experts":
        each = [adamw(bank.expert(number).parameters()) for number in range(EXPERTS)]

        def loop() -> float:
            x_t, total = schedule.add_noise(x_0, timesteps, noise), 0.0
            for number, optimiser in enumerate(each):
                rows = slice(number * share, (number + 1) * share)
                loss = task.transfer_loss(bank.predict(x_t[rows], number), taught[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += float(loss.detach())
            return total / EXPERTS

        return bank, loop
    if way == "grouped":
        every = adamw(bank.experts.parameters())

        def grouped() -> float:
            x_t = schedule.add_noise(x_0, timesteps, noise)
            loss = task.transfer_loss(bank.predict_mixed(x_t, experts), taught)
            every.zero_grad()
            (loss * EXPERTS).backward()
            every.step()
            return float(loss.detach())

        return bank, grouped
    joint = JointStep(bank, task.transfer_loss, compile=way == "joint, compiled")
    lines = adamw(joint.parameters)

    def together() -> float:
        x_t = schedule.add_noise(x_0, timesteps, noise)
        value = joint(x_t.view(EXPERTS, share, *x_t.shape[1:]), taught)
        lines.step()
        return value

    return bank, together


def turn_stepper(
    way: str, predictor: str, device: str = "cpu", batch: int = TURN_BATCH
) -> Callable[[], float]:
    """A step of one expert, of the next one at the next call; it gives the loss.

    Args:
        way: of :data:`IN_TURN`.
        predictor: of the setting.
        device: where networks and images are.
        batch: images.
    """
    bank = bank_of(predictor, device=device).train()
    task, schedule = ClassTask(), denoiser(device).schedule
    x_0, timesteps, noise = drawn(batch, device)
    taught = bank.teacher_prediction(x_0)
    precision: Precision = "bf16" if way.endswith("bf16") else "fp32"
    compiled = ExpertStep(bank, task.transfer_loss, precision)
    copies = ReferenceExperts(bank) if way == "reference" else None
    every = copies.own if copies else [bank.expert(n).tensors() for n in range(EXPERTS)]
    optimisers = [adamw(own.values()) for own in every]
    turn = count()

    def step() -> float:
        number = next(turn) % EXPERTS
        optimiser, expert = optimisers[number], bank.expert(number)
        if copies is not None:
            return reference_expert_step(
                copies, number, optimiser, bank.predictor.eval(), x_0, timesteps, noise, schedule
            )
        x_t = schedule.add_noise(x_0, timesteps, noise)
        if way.startswith("compiled"):
            loss = compiled(expert, x_t, taught)
        else:
            optimiser.zero_grad()
            with autocast(precision, device):
                loss = task.transfer_loss(bank.predict(x_t, number), taught)
            loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def drawn(batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """(B, ...) images, timesteps and noise, the same for every way."""
    x_0, noise = noisy(batch, device).tanh(), noisy(2 * batch, device)[batch:]
    return x_0, torch.arange(batch, device=device) * 1000 // batch, noise


def adamw(parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimiser of every way."""
    return torch.optim.AdamW(parameters, 1e-4, weight_decay=0.05, fused=True)
