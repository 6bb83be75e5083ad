"""Training steps: of five experts on one batch of 40, and of one expert at a time on 64 images.

Ratios of the former are to the loop over experts, of the latter to the released code's way.
"""

from __future__ import annotations

import pytest

from ppap.compute.cpu import native_bfloat16

from .conftest import Measure
from .training_steps import BATCH, IN_TURN, TURN_BATCH, WAYS, stepper, turn_stepper
from .workloads import EXPERTS, PREDICTORS


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


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize(
    "way", [way for way in IN_TURN if native_bfloat16() or not way.endswith("bf16")]
)
def test_training_step_in_turn(measure: Measure, way: str, predictor: str) -> None:
    step, reference = turn_stepper(way, predictor), turn_stepper("reference", predictor)
    for _ in range(EXPERTS + 1):  # the last sees what the first has trained
        assert step() == pytest.approx(reference(), rel=2e-2 if way.endswith("bf16") else 2e-3)
    measure(
        f"training step of one expert, {predictor}, batch {TURN_BATCH}", way, step,
        images=TURN_BATCH, rounds=21, against=reference,
    )  # fmt: skip
