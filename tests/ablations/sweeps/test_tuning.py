"""Every arm that is trained has its learning rate chosen, by trainings that no curve shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ablations.cells.curves import Curve
from ablations.cells.validation import TunedRate
from ablations.errors import UserError
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import SWEEPS, Lab
from ablations.sweeps.tuning import RATES


def lab(name: str = "fashion") -> Lab:
    setting = load_setting(name)
    return Lab(setting, BUDGETS["default"], "default", setting.predictors)


@pytest.mark.parametrize("setting", ["fashion", "scenes"])
def test_every_trained_arm_of_the_claims_is_tuned_by_other_seeds(setting: str) -> None:
    tuned = [cell for cell in SWEEPS["tuning"].build(lab(setting)) if isinstance(cell, TunedRate)]
    curves = [cell for cell in SWEEPS["claims"].build(lab(setting)) if isinstance(cell, Curve)]
    arms = {
        (curve.about.predictor, curve.about.method): curve.banks
        for curve in curves
        if curve.banks and curve.about.supervision != "shuffled"
    }
    assert [(cell.about.predictor, cell.about.method) for cell in tuned] == list(arms)
    for cell in tuned:
        shown = arms[cell.about.predictor, cell.about.method][0]
        for rate, row in zip(RATES, cell.validations, strict=True):
            for validation in row:
                training = validation.experts.training
                assert training.seed >= 2_000
                same = replace(
                    validation.experts,
                    training=replace(training, seed=0, learning_rate=shown.training.learning_rate),
                )
                assert same == shown
                assert training.learning_rate == rate
                assert (validation.held_out is None) == (cell.about.supervision == "labelled")


def test_trainings_are_two_or_as_few_as_the_budget_has_seeds() -> None:
    smoke = replace(lab(), budget=BUDGETS["smoke"])
    for made, count in ((lab(), 2), (smoke, 1)):
        (first, *_) = SWEEPS["tuning"].build(made)
        assert isinstance(first, TunedRate)
        assert [len(row) for row in first.validations] == [count] * len(RATES)


def test_a_rate_that_is_given_leaves_nothing_to_tune() -> None:
    with pytest.raises(UserError, match="varies learning_rate"):
        list(SWEEPS["tuning"].build(replace(lab(), changes=(("learning_rate", 0.1),))))
