"""Whole calls of ``sample`` in a process that is warm, and what calls spend on setting up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
SECOND_CALLS = tuple(SECOND + name for name in PREDICTORS)
NEW_PROCESSES = (NEW + "until the first step", NEW + "set-up")


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
def second_calls() -> Iterator[Group]:
    """Seconds on the fast path until its first step begins, in a process that has sampled before.

    A step varies by as much, so that many are made.
    """
    yield from set_up(lambda way: Way(second_call(way.removeprefix(SECOND))), rounds=9)


@pytest.fixture(scope="module")
def new_processes() -> Iterator[Group]:
    """Seconds of processes that find on disk all that is compiled."""
    processes = NewProcesses("resnet")

    def make(way: str) -> Way:
        next_one = partial(processes.next, way.removeprefix(NEW))
        return Way(next_one, part=lambda: processes.warmed)

    yield from set_up(make, rounds=3)


def set_up(make: Callable[[str], Way], rounds: int) -> Iterator[Group]:
    """The group of ways whose runs give seconds themselves."""
    stopwatch = partial(in_whole_calls, timed=lambda run: run())
    group = Group("set-up", make, reference=None, rounds=rounds, stopwatch=stopwatch, memory=None)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", SECOND_CALLS)
def test_second_call(measure: Measure, second_calls: Group, way: str) -> None:
    measure(second_calls, way)


@pytest.mark.parametrize("way", NEW_PROCESSES)
def test_new_process(measure: Measure, new_processes: Group, way: str) -> None:
    measure(new_processes, way)
