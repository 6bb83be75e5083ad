"""Which expert is trained when, for how long, on which noise, and from what."""

from __future__ import annotations

from typing import Any

import pytest

from ppap.experts.routing import NoiseRanges
from ppap.experts.stages import Stage, stages
from ppap.experts.training import Training

LOW, MIDDLE, HIGH, ALL = (0, 333), (333, 666), (666, 1000), (0, 1000)
SHARED = ((0, 1), (0, 2))

PLANS: dict[tuple[str, str], list[Stage]] = {
    ("previous", "ascending"): [
        Stage(4, 0, LOW), Stage(4, 1, MIDDLE, ((0, 1),)), Stage(4, 2, HIGH, ((1, 2),)),
    ],
    ("previous", "descending"): [
        Stage(4, 2, HIGH), Stage(4, 1, MIDDLE, ((2, 1),)), Stage(4, 0, LOW, ((1, 0),)),
    ],
    ("base", "ascending"): [Stage(4, 0, LOW), Stage(4, 1, MIDDLE), Stage(4, 2, HIGH)],
    ("own", "descending"): [Stage(4, 2, HIGH), Stage(4, 1, MIDDLE), Stage(4, 0, LOW)],
    ("shared", "ascending"): [
        Stage(3, 0, ALL), Stage(3, 0, LOW, SHARED), Stage(3, 1, MIDDLE), Stage(3, 2, HIGH),
    ],
    ("shared", "descending"): [
        Stage(3, 0, ALL), Stage(3, 2, HIGH, SHARED), Stage(3, 1, MIDDLE), Stage(3, 0, LOW),
    ],
    ("base", "together"): [Stage(12, None, ALL)],
    ("shared", "together"): [Stage(3, 0, ALL), Stage(9, None, ALL, SHARED)],
}  # fmt: skip


def plan(count: int, steps: int, **options: Any) -> list[Stage]:
    training = Training(steps, 3, shared_share=0.25, **options)
    return stages(NoiseRanges.equal(count), training)


@pytest.mark.parametrize(("start", "order"), PLANS)
def test_three_experts_share_twelve_steps(start: str, order: str) -> None:
    assert plan(3, 12, start=start, order=order) == PLANS[start, order]


def test_steps_that_cannot_be_shared_evenly_are_all_made() -> None:
    assert [stage.steps for stage in plan(3, 11)] == [3, 4, 4]
    assert [stage.steps for stage in plan(3, 11, start="shared")] == [3, 2, 3, 3]
    assert [stage.steps for stage in plan(4, 2)] == [0, 1, 0, 1]


@pytest.mark.parametrize("start", ["previous", "base", "shared", "own"])
def test_a_single_expert_is_one_stage_whatever_it_starts_from(start: str) -> None:
    assert plan(1, 12, start=start) == [Stage(12, 0, ALL)]
