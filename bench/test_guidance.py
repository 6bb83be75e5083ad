"""Guided sampling: a step, a switch of experts, a batch of mixed timesteps; and synthesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from itertools import count

import pytest
import torch
from torch import Tensor

from ppap.diffusion.guide import State
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.fast.views import view_of
from ppap.guidance.guides import naive_guide
from ppap.tasks.classes import ClassTask

from .conftest import Measure
from .groups import Group, Way
from .guided import HALF, HALF_WITHIN, SAMPLER, WAYS, stepper
from .reference import ReferenceExperts
from .workloads import BATCH, EXPERTS, PREDICTORS, SCALE, TARGETS, agree, bank_of, denoiser, noisy


@pytest.fixture(scope="module", params=PREDICTORS)
def steps(request: pytest.FixtureRequest) -> Iterator[Group]:
    predictor, x_t = request.param, noisy()
    plain = cache(lambda: stepper("plain", predictor))

    def in_eager_torch() -> Tensor:
        return plain()(x_t)

    def make(way: str) -> Way:
        step = stepper(way, predictor)

        def run() -> Tensor:
            return step(x_t)

        return Way(
            run,
            check=lambda: agree(
                run(), in_eager_torch(), within=HALF_WITHIN if way == HALF else 1e-3
            ),
            counted=run if way == "reference" else in_eager_torch,
        )

    with closing(Group(f"guided step, {predictor}, batch {BATCH}", make, images=BATCH)) as group:
        yield group


@pytest.mark.parametrize("way", WAYS)
def test_step(measure: Measure, steps: Group, way: str) -> None:
    measure(steps, way)


@pytest.fixture(scope="module")
def synthesis() -> Iterator[Group]:
    def plain() -> Tensor:
        return sample(denoiser(), BATCH, None, SAMPLER, batch=BATCH, fast=False)

    expected = cache(plain)

    def make(way: str) -> Way:
        if way != "fast path":
            return Way(plain, counted=plain)
        fast = FastPath(denoiser(), BATCH)

        def run() -> Tensor:
            return sample(denoiser(), BATCH, None, SAMPLER, batch=BATCH, fast=fast)

        return Way(run, check=lambda: agree(run(), expected(), share=1.0), counted=plain)

    group = Group(f"synthesis, DDIM-25, batch {BATCH}", make, images=BATCH, rounds=5)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", ["reference", "fast path"])
def test_synthesis(measure: Measure, synthesis: Group, way: str) -> None:
    """Without a guide the reference is the plain path."""
    measure(synthesis, way)


@pytest.fixture(scope="module")
def switches() -> Iterator[Group]:
    """From one expert to the next; the reference has no switch, it merges at each of 5 calls."""
    bank = bank_of("resnet")

    def five_calls() -> Callable[[int], object]:
        experts = ReferenceExperts(bank)

        def run(number: int) -> None:
            base = dict(experts.networks[number].named_parameters())
            for _ in range(EXPERTS):
                bank.adapter.effective(base, experts.own[number])

        return run

    def into_the_view() -> Callable[[int], object]:
        view = view_of(bank)
        assert view is not None
        return lambda number: view.switch(200 * number, thorough=False)

    def make(way: str) -> Way:
        ways = {
            "reference": five_calls, "plain": lambda: bank.effective, "fast path": into_the_view,
        }  # fmt: skip
        switch, turns = ways[way](), count(1)
        return Way(lambda: switch(next(turns) % EXPERTS))

    name = "expert switch, five calls under one expert, resnet"
    with closing(Group(name, make, rounds=25)) as group:
        yield group


@pytest.mark.parametrize("way", ["reference", "plain", "fast path"])
def test_switch(measure: Measure, switches: Group, way: str) -> None:
    measure(switches, way)


@pytest.fixture(scope="module", params=PREDICTORS)
def mixed(request: pytest.FixtureRequest) -> Iterator[Group]:
    """The gradient of a batch that five experts share; the reference goes through them in turn."""
    bank, x_t = bank_of(request.param), noisy()
    timesteps = torch.arange(BATCH) * 137 % 1000
    experts = bank.ranges.expert_of(timesteps)
    copies = ReferenceExperts(bank)
    together = bank.guide(TARGETS, SCALE)
    naive = naive_guide(bank.predictor, ClassTask(), TARGETS, SCALE)

    def in_turn() -> Tensor:
        found = torch.empty_like(x_t)
        for number in range(EXPERTS):
            rows = experts == number
            gradient = copies.guide(TARGETS[rows], SCALE)(State(x_t[rows], timesteps[rows]))
            assert gradient is not None
            found[rows] = gradient
        return found

    def one_pass() -> Tensor:
        gradient = together(State(x_t, timesteps))
        assert gradient is not None
        return gradient

    ways = {
        "reference": Way(in_turn),
        "one pass": Way(one_pass, check=lambda: agree(one_pass(), in_turn())),
        "no experts": Way(lambda: naive(State(x_t, timesteps))),
    }
    name = f"gradient at mixed timesteps, {request.param}, batch {BATCH}"
    with closing(Group(name, ways.__getitem__, images=BATCH)) as group:
        yield group


@pytest.mark.parametrize("way", ["reference", "one pass", "no experts"])
def test_mixed_timesteps(measure: Measure, mixed: Group, way: str) -> None:
    measure(mixed, way)
