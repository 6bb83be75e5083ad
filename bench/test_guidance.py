"""Guided sampling: a step, a trajectory, a switch of experts, a batch of mixed timesteps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor

from ppap.diffusion.guide import Guide, State
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.fast.views import view_of
from ppap.guidance.guides import naive_guide
from ppap.tasks.classes import ClassTask

from .conftest import Measure
from .guided import HALF, SAMPLER, WAYS, stepper
from .reference import ReferenceExperts
from .workloads import BATCH, EXPERTS, PREDICTORS, SCALE, TARGETS, agree, bank_of, denoiser, noisy

WITHIN = {False: 1e-3, True: 0.1}
"""Share of the largest value that a step may be off by; in bfloat16 kinks turn some gradients."""


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("way", WAYS)
def test_step(measure: Measure, way: str, predictor: str) -> None:
    step, plain, x_t = stepper(way, predictor), stepper("plain", predictor), noisy()
    reference = stepper("reference", predictor)
    agree(step(x_t), plain(x_t), within=WITHIN[way == HALF])
    measure(
        f"guided step, {predictor}, batch {BATCH}", way, lambda: step(x_t), images=BATCH,
        counted=lambda: (plain if way.startswith("fast path") else step)(x_t), rounds=15,
        against=lambda: reference(x_t),
    )  # fmt: skip


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("way", WAYS)
def test_trajectory(measure: Measure, way: str, predictor: str) -> None:
    bank = bank_of(predictor)
    guide: Guide = bank.guide(TARGETS, SCALE)
    if way == "reference":
        guide = ReferenceExperts(bank).guide(TARGETS, SCALE)
    fast: FastPath | bool = False
    if way in ("fast path", HALF):
        fast = FastPath(denoiser(), BATCH, precision="bf16" if way == HALF else "fp32")

    def run() -> Tensor:
        return sample(denoiser(), BATCH, guide, SAMPLER, batch=BATCH, fast=fast)

    def plain() -> Tensor:
        guide = bank.guide(TARGETS, SCALE)
        return sample(denoiser(), BATCH, guide, SAMPLER, batch=BATCH, fast=False)

    copies = ReferenceExperts(bank).guide(TARGETS, SCALE)

    def reference() -> Tensor:
        return sample(denoiser(), BATCH, copies, SAMPLER, batch=BATCH, fast=False)

    if way == HALF:  # its rounding, amplified over 25 steps, makes other images of some seeds
        agree(
            stepper(way, predictor)(noisy()),
            stepper("plain", predictor)(noisy()),
            within=WITHIN[True],
        )
    else:
        agree(run(), plain())
    measure(
        f"PPAP-{EXPERTS}, guided DDIM-25, {predictor}, batch {BATCH}", way, run,
        images=BATCH, counted=run if fast is False else plain, against=reference,
    )  # fmt: skip


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_preset(measure: Measure, predictor: str) -> None:
    """Other images, in fewer steps: how many times as fast as the reference's DDIM-25."""
    bank = bank_of(predictor)
    guide, copies = bank.guide(TARGETS, SCALE), ReferenceExperts(bank).guide(TARGETS, SCALE)
    measure(
        f"PPAP-{EXPERTS}, guided DDIM-25, {predictor}, batch {BATCH}", "preset fast",
        lambda: sample(denoiser(), BATCH, guide, batch=BATCH, preset="fast"), images=BATCH,
        counted=lambda: sample(denoiser(), BATCH, guide, batch=BATCH, preset="fast", fast=False),
        against=lambda: sample(denoiser(), BATCH, copies, SAMPLER, batch=BATCH, fast=False),
    )  # fmt: skip


@pytest.mark.parametrize("way", ["reference", "plain", "fast path"])
def test_synthesis(measure: Measure, way: str) -> None:
    fast = FastPath(denoiser(), BATCH) if way == "fast path" else None

    def run() -> Tensor:
        return sample(denoiser(), BATCH, None, SAMPLER, batch=BATCH, fast=fast)

    def plain() -> Tensor:
        return sample(denoiser(), BATCH, None, SAMPLER, batch=BATCH, fast=False)

    agree(run(), plain(), share=1.0)
    measure(
        f"synthesis, DDIM-25, batch {BATCH}", way, run, images=BATCH, counted=plain, against=plain,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["reference", "plain", "fast path"])
def test_switch(measure: Measure, way: str) -> None:
    """From one expert to the next; the reference has no switch, it merges at each of 5 calls."""
    bank = bank_of("resnet")
    view = view_of(bank)
    assert view is not None
    experts = ReferenceExperts(bank)
    turns = count(1)

    def five_calls(number: int) -> None:
        base = dict(experts.networks[number].named_parameters())
        for _ in range(EXPERTS):
            bank.adapter.effective(base, experts.own[number])

    switch: Callable[[int], object] = {
        "reference": five_calls,
        "plain": bank.effective,
        "fast path": lambda number: view.switch(200 * number, thorough=False),
    }[way]
    measure(
        "expert switch, five calls under one expert, resnet", way,
        lambda: switch(next(turns) % EXPERTS), rounds=25,
        against=lambda: five_calls(next(turns) % EXPERTS),
    )  # fmt: skip


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("way", ["reference", "one pass", "no experts"])
def test_mixed_timesteps(measure: Measure, way: str, predictor: str) -> None:
    """The gradient of a batch that five experts share; the reference goes through them in turn."""
    bank, x_t = bank_of(predictor), noisy()
    timesteps = torch.arange(BATCH) * 137 % 1000
    experts = bank.ranges.expert_of(timesteps)
    together = bank.guide(TARGETS, SCALE)
    copies = ReferenceExperts(bank)

    def reference() -> Tensor:
        found = torch.empty_like(x_t)
        for number in range(EXPERTS):
            rows = experts == number
            found[rows] = copies.guide(TARGETS[rows], SCALE)(State(x_t[rows], timesteps[rows]))
        return found

    ways: dict[str, Callable[[], Tensor]] = {
        "reference": reference,
        "one pass": lambda: together(State(x_t, timesteps)),
        "no experts": lambda: naive_guide(bank.predictor, ClassTask(), TARGETS, SCALE)(
            State(x_t, timesteps)
        ),
    }
    if way == "one pass":
        agree(ways[way](), reference())
    measure(
        f"gradient at mixed timesteps, {predictor}, batch {BATCH}", way, ways[way],
        images=BATCH, rounds=15, against=reference,
    )  # fmt: skip
