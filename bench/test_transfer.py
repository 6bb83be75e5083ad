"""A training step of five experts on one batch of 40; ratios are to the loop over experts."""

from __future__ import annotations

import pytest

from .conftest import Measure
from .training_steps import BATCH, WAYS, stepper
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
