"""The rule that selects guidance scales, and the cell that applies it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ablations.cells.samples import Samples
from ablations.cells.scores import Score
from ablations.cells.selection import Selection
from ablations.cells.setup import Setup
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ablations.settings.setting import SelectionRule
from ppap.diffusion.ddim import DDIM


def test_two_points_of_accuracy_below_the_best_are_near_and_more_are_not() -> None:
    rule = load_setting("fashion").tasks["class"].selection
    assert rule.near_best([0.95, 0.97, 0.94, 0.0]) == [True, True, False, False]
    fids = [3.0, 5.0, 1.0, 0.1]
    scores = [
        {"accuracy": accuracy, "fid": fid}
        for accuracy, fid in zip([0.95, 0.97, 0.94, 0.0], fids, strict=True)
    ]
    assert rule.select(scores) == 0


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_relative_margin_is_a_share_of_the_least_error(higher_is_better: bool) -> None:
    rule = SelectionRule("figure", 0.05, relative=True, higher_is_better=higher_is_better)
    errors = [0.100, 0.104, 0.107, 0.5]
    figures = [1 - error for error in errors] if higher_is_better else errors
    assert rule.near_best(figures) == [True, True, False, False]


def test_an_absolute_margin_above_the_least_error() -> None:
    rule = SelectionRule("figure", 0.25, higher_is_better=False)
    assert rule.near_best([1.0, 1.25, 1.5]) == [True, True, False]


def test_of_equal_fids_the_first_is_selected() -> None:
    rule = SelectionRule("accuracy", 0.5)
    assert rule.select([{"accuracy": 0.6, "fid": 2.0}, {"accuracy": 0.9, "fid": 2.0}]) == 0


@pytest.mark.parametrize(("task", "metric"), [("depth", "depth_rmse"), ("class", "accuracy")])
def test_the_cell_gives_the_scale_of_the_selected_candidate(task: str, metric: str) -> None:
    setting = load_setting("scenes")
    samples = Samples(Setup.of(setting), DDIM(25), (), 0, 40)
    candidates = tuple(Score(replace(samples, first_seed=k)) for k in range(4))
    errors, fids = [0.100, 0.104, 0.107, 0.5], [9.0, 8.0, 2.0, 1.0]
    found = {
        cell.key: Artifact(
            {metric: error if task == "depth" else 1 - error, "fid": fid, "scales": [10.0 * k]}
        )
        for k, (cell, error, fid) in enumerate(zip(candidates, errors, fids, strict=True))
    }
    selection = Selection(setting.tasks[task].selection, candidates)
    assert selection.compute(lambda cell: found[cell.key]).meta == {"scale": 10.0}
