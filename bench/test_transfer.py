"""Training steps: of five experts on one batch of 40, and of one expert at a time on 64 images.

Ratios of the former are to the loop over experts, of the latter to the released code's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from ppap.compute.cpu import native_bfloat16

from .conftest import Measure
from .groups import Group, Way
from .training_steps import BATCH, IN_TURN, TURN_BATCH, WAYS, stepper, turn_stepper
from .workloads import EXPERTS, PREDICTORS


def same_losses(
    step: Callable[[], float], reference: Callable[[], float], steps: int, rel: float = 2e-3
) -> None:
    """The gate: step by step the same losses, so that a step sees what those before it trained."""
    for _ in range(steps):
        assert step() == pytest.approx(reference(), rel=rel)


@pytest.fixture(scope="module", params=PREDICTORS)
def at_once(request: pytest.FixtureRequest) -> Iterator[Group]:
    predictor = request.param

    def make(way: str) -> Way:
        _, step = stepper(way, predictor)
        _, loop = stepper("loop over experts", predictor)
        return Way(step, check=lambda: same_losses(step, loop, 2))

    name = f"training step of {EXPERTS} experts, {predictor}, batch {BATCH}"
    group = Group(name, make, reference="loop over experts", images=BATCH, rounds=15)
    with closing(group):
        yield group


@pytest.mark.parametrize("way", WAYS)
def test_training_step(measure: Measure, at_once: Group, way: str) -> None:
    measure(at_once, way)


@pytest.fixture(scope="module", params=PREDICTORS)
def in_turn(request: pytest.FixtureRequest) -> Iterator[Group]:
    predictor = request.param

    def make(way: str) -> Way:
        step, reference = turn_stepper(way, predictor), turn_stepper("reference", predictor)
        rel = 2e-2 if way.endswith("bf16") else 2e-3
        return Way(step, check=lambda: same_losses(step, reference, EXPERTS + 1, rel))

    name = f"training step of one expert, {predictor}, batch {TURN_BATCH}"
    with closing(Group(name, make, images=TURN_BATCH, rounds=15)) as group:
        yield group


@pytest.mark.parametrize(
    "way", [way for way in IN_TURN if native_bfloat16() or not way.endswith("bf16")]
)
def test_training_step_in_turn(measure: Measure, in_turn: Group, way: str) -> None:
    measure(in_turn, way)
