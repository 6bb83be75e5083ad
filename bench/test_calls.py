"""Whole calls of ``sample`` in a process that is warm, and what calls spend on setting up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cache, partial

import pytest
from torch import Tensor

from ppap.diffusion.sampling import Step

from .calls import PRESET, NewProcesses, drawn, second_call
from .conftest import Measure
from .groups import Group, Way, in_whole_calls
from .guided import HALF, HALF_WITHIN, WAYS, guide_of
from .workloads import BATCH, EXPERTS, PREDICTORS, agree, bank_of

BATCHES = 4
IMAGES = BATCHES * BATCH
FIGURES = ("second call", "new process, until the first step", "new process, set-up")


@pytest.fixture(scope="module", params=PREDICTORS)
def calls(request: pytest.FixtureRequest) -> Iterator[Group]:
    """As a user makes them, of several batches.

    A batch is a part. Each begins anew with the first expert, so that the operations of a call
    are exactly those of one batch, as often as there are batches.
    """
    bank = bank_of(request.param)
    targets = guide_of("plain", bank, BATCH)
    plain, preset = (partial(drawn, way, targets, fast=False) for way in ("plain", PRESET))

    @cache
    def expected() -> tuple[Tensor, Step]:
        seen: list[Step] = []
        return drawn("plain", targets, on_step=seen.append), seen[0]

    def make(way: str) -> Way:
        guide = guide_of(way, bank, IMAGES)
        one_batch = guide.rows(slice(0, BATCH))

        def check() -> None:
            """Rounding to bfloat16, amplified over 25 steps, makes other images of some seeds."""
            seen: list[Step] = []
            images = drawn(way, one_batch, on_step=seen.append)
            if way == HALF:
                agree(seen[0].x, expected()[1].x, within=HALF_WITHIN)
            else:
                agree(images, expected()[0])

        part = partial(drawn, way, one_batch)
        return Way(
            partial(drawn, way, guide, IMAGES),
            part,
            check if way != PRESET else None,  # in fewer steps it draws other images
            {"reference": part, PRESET: preset}.get(way, plain),
        )

    name = f"PPAP-{EXPERTS}, guided DDIM-25, {request.param}, {IMAGES} images"
    group = Group(name, make, images=IMAGES, parts=BATCHES, rounds=5, stopwatch=in_whole_calls)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", [*WAYS, PRESET])
def test_call(measure: Measure, calls: Group, way: str) -> None:
    """The preset draws other images in fewer steps; its ratio is to the reference's DDIM-25."""
    measure(calls, way)


@pytest.fixture(scope="module")
def set_ups() -> Iterator[Group]:
    """Seconds on the fast path until its first step begins, with all that is compiled on disk."""
    processes = {name: NewProcesses(name) for name in PREDICTORS}

    def make(way: str) -> Way:
        figure, predictor = way.rsplit(", ", 1)
        if figure == "second call":
            return Way(second_call(predictor))
        own = processes[predictor]
        return Way(partial(own.next, figure.removeprefix("new process, ")), part=lambda: own.warmed)

    stopwatch = partial(in_whole_calls, timed=lambda run: run())
    group = Group("set-up", make, reference=None, rounds=5, stopwatch=stopwatch, memory=None)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", [f"{figure}, {name}" for name in PREDICTORS for figure in FIGURES])
def test_set_up(measure: Measure, set_ups: Group, way: str) -> None:
    measure(set_ups, way)
