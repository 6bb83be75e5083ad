"""A training step of five experts on one batch of 40; ratios are to the loop over experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ppap.experts.bank import ExpertBank
from ppap.experts.together import JointStep
from ppap.tasks.classes import ClassTask

from .conftest import Measure
from .reference import ReferenceExperts, reference_training_step
from .workloads import EXPERTS, PREDICTORS, bank_of, denoiser, noisy

BATCH = 40
SHARE = BATCH // EXPERTS
WAYS = ("reference", "loop over experts", "grouped", "joint", "joint, compiled")


def stepper(way: str, predictor: str) -> tuple[ExpertBank | ReferenceExperts, Callable[[], float]]:
    """What is trained, and one step of all experts that gives their mean loss.

    Every way sees the same images, noise and timesteps, and ends with an optimiser's step.
    """
    bank = bank_of(predictor).train()
    task, schedule = ClassTask(), denoiser().schedule
    x_0, noise = noisy(BATCH).tanh(), noisy(2 * BATCH)[BATCH:]
    timesteps = torch.arange(BATCH) * 1000 // BATCH
    experts = torch.arange(EXPERTS).repeat_interleave(SHARE)
    taught = bank.teacher_prediction(x_0)

    def adamw(*parameters: torch.nn.Parameter) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, 1e-4, weight_decay=0.05, fused=True)

    if way == "reference":
        copies = ReferenceExperts(bank)
        optimisers = [adamw(*own.values()) for own in copies.own]  # type: ignore[arg-type]
        return copies, lambda: reference_training_step(
            copies, optimisers, bank.predictor.eval(), x_0, timesteps, noise, schedule
        )
    if way == "loop over experts":
        each = [adamw(*bank.expert(number).parameters()) for number in range(EXPERTS)]

        def loop() -> float:
            x_t, total = schedule.add_noise(x_0, timesteps, noise), 0.0
            for number, optimiser in enumerate(each):
                rows = slice(number * SHARE, (number + 1) * SHARE)
                loss = task.transfer_loss(bank.predict(x_t[rows], number), taught[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += float(loss.detach())
            return total / EXPERTS

        return bank, loop
    if way == "grouped":
        every = adamw(*bank.experts.parameters())

        def grouped() -> float:
            x_t = schedule.add_noise(x_0, timesteps, noise)
            loss = task.transfer_loss(bank.predict_mixed(x_t, experts), taught)
            every.zero_grad()
            (loss * EXPERTS).backward()
            every.step()
            return float(loss.detach())

        return bank, grouped
    joint = JointStep(
        bank,
        lambda found, chosen: task.transfer_loss(found, taught[chosen]),
        compile=way == "joint, compiled",
    )
    lines = adamw(joint.parameters)
    chosen = torch.arange(BATCH).view(EXPERTS, SHARE)

    def together() -> float:
        x_t = schedule.add_noise(x_0, timesteps, noise)
        value = joint(x_t.view(EXPERTS, SHARE, *x_t.shape[1:]), chosen)
        lines.step()
        return value

    return bank, together


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("way", WAYS)
def test_training_step(measure: Measure, way: str, predictor: str) -> None:
    _, step = stepper(way, predictor)
    _, loop = stepper("loop over experts", predictor)
    for _ in range(2):  # the second sees what the first has trained
        assert step() == pytest.approx(loop(), rel=2e-3)
    measure(
        f"training step of {EXPERTS} experts, {predictor}, batch {BATCH}", way, step,
        images=BATCH, rounds=31, against=loop,
    )  # fmt: skip
