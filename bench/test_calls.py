"""Whole calls of ``sample`` in a process that is warm, and what calls spend on setting up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cache, partial

import pytest

from ppap.diffusion.stepping import plain_step
from ppap.fast.kept import kept_path

from .calls import PRESETS, NewProcesses, drawn, second_call
from .conftest import Measure
from .groups import Group, Way, in_whole_calls
from .guided import HALF, HALF_WITHIN, WAYS, guide_of, step_of
from .workloads import BATCH, EXPERTS, PREDICTORS, agree, bank_of, denoiser, noisy

BATCHES = 4
IMAGES = BATCHES * BATCH
COMPARED = (*(way for way in WAYS if way != "plain"), *PRESETS)
"""The plain path stands beside the reference among the guided steps."""
SECOND, NEW = "second call, ", "new process, "
SET_UPS = (*(SECOND + name for name in PREDICTORS), NEW + "until the first step", NEW + "set-up")


@pytest.fixture(scope="module", params=PREDICTORS)
def calls(request: pytest.FixtureRequest) -> Iterator[Group]:
    """As a user makes them, of several batches.

    A batch is a part. Each begins anew with the first expert, so that the operations of a call
    are exactly those of one batch, as often as there are batches.
    """
    bank = bank_of(request.param)
    targets = guide_of("plain", bank, BATCH)
    plain = partial(drawn, "plain", targets, fast=False)
    expected = cache(plain)

    def make(way: str) -> Way:
        guide = guide_of(way, bank, IMAGES)
        one_batch = guide.rows(slice(0, BATCH))

        def check() -> None:
            if way != HALF:
                agree(part(), expected())
                return
            # Over 25 steps rounding to bfloat16 makes other images of some seeds: one is compared.
            path = kept_path(denoiser(), BATCH, "bf16")
            ours, theirs = (
                step_of(step, denoiser(), one_batch)(noisy()) for step in (path.step, plain_step)
            )
            agree(ours, theirs, within=HALF_WITHIN)

        part = partial(drawn, way, one_batch)
        counted = way if way in PRESETS else "plain"
        return Way(
            partial(drawn, way, guide, IMAGES),
            part,
            check if way not in PRESETS else None,  # in fewer steps it draws other images
            part if way == "reference" else partial(drawn, counted, targets, fast=False),
        )

    name = f"PPAP-{EXPERTS}, guided DDIM-25, {request.param}, {IMAGES} images"
    group = Group(name, make, images=IMAGES, parts=BATCHES, rounds=5, stopwatch=in_whole_calls)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", COMPARED)
def test_call(measure: Measure, calls: Group, way: str) -> None:
    """A preset draws other images in fewer steps; its ratio is to the reference's DDIM-25."""
    measure(calls, way)


@pytest.fixture(scope="module")
def set_ups() -> Iterator[Group]:
    """Seconds on the fast path until its first step begins, with all that is compiled on disk."""
    processes = NewProcesses("resnet")

    def make(way: str) -> Way:
        if way.startswith(SECOND):
            return Way(second_call(way.removeprefix(SECOND)))
        next_one = partial(processes.next, way.removeprefix(NEW))
        return Way(next_one, part=lambda: processes.warmed)

    stopwatch = partial(in_whole_calls, timed=lambda run: run())
    group = Group("set-up", make, reference=None, rounds=3, stopwatch=stopwatch, memory=None)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", SET_UPS)
def test_set_up(measure: Measure, set_ups: Group, way: str) -> None:
    measure(set_ups, way)
