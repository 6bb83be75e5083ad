"""Guidance towards whole scenes: which cells a row is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest

from ablations.cells.experts import Experts
from ablations.cells.intervals import RowFigures
from ablations.cells.pictures import Panel
from ablations.cells.results import Result, Row
from ablations.cells.samples import Samples
from ablations.cells.selection import Selection
from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.runs import Options
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import SWEEPS, Lab, Recipe
from ppap.experts.bank import ExpertBank
from ppap.tasks.depth import DepthTask


def scenes_lab(budget: str = "default") -> Lab:
    return Lab(load_setting("scenes"), BUDGETS[budget], budget, ("resnet",))


def needed(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all that they need, each once."""
    found: dict[str, Cell] = {}
    waiting = list(cells)
    while waiting:
        cell = waiting.pop()
        if cell.key not in found:
            found[cell.key] = cell
            waiting.extend(cell.inputs())
    return list(found.values())


def dense() -> list[Result]:
    return list(SWEEPS["dense"].build(scenes_lab()))


def test_every_method_guides_by_every_task_and_by_all() -> None:
    rows = [result for result in dense() if isinstance(result, Row)]
    found = {(row.about.predictor, row.about.method) for row in rows}
    methods = {"naive", "single", "multi-experts", "ppap"}
    tasks = {"class", "depth", "segmentation", "all three"}
    assert found == {("none", "unguided")} | {
        (task, method) for task in tasks for method in methods
    }
    assert len(rows) == len(found)
    for row in rows:
        banks = 0 if row.about.method in ("naive", "unguided") else 3
        assert len(row.banks) == banks * (3 if row.about.predictor == "all three" else 1)
    panels = [result for result in dense() if isinstance(result, Panel)]
    assert {(panel.about.predictor, panel.about.method) for panel in panels} == found


def test_all_tasks_at_once_use_the_experts_and_scales_of_each() -> None:
    cells = needed(dense())
    samples = [cell for cell in cells if isinstance(cell, Samples)]
    alone = {s.guidance[0] for s in samples if len(s.guidance) == 1}
    together = [s for s in samples if len(s.guidance) == 3]
    assert together
    assert all(part in alone for s in together for part in s.guidance)
    banks = [cell for cell in cells if isinstance(cell, Experts)]
    assert len(banks) == 3 * 3 * 3  # methods with experts, tasks, seeds


def test_scales_are_selected_on_seeds_and_scenes_that_no_row_is_measured_on() -> None:
    cells = needed(dense())
    selections = [cell for cell in cells if isinstance(cell, Selection)]
    assert len(selections) == 12
    trying = {
        score.samples.first_seed for selection in selections for score in selection.candidates
    }
    measured = {
        score.samples.first_seed
        for cell in cells
        if isinstance(cell, RowFigures)
        for score in cell.scores
    }
    assert len(measured) == 3
    spans = [range(first, first + 10**7) for first in sorted(trying | measured)]
    assert all(a.stop <= b.start for a, b in pairwise(spans))


def test_scales_are_relative_to_how_flat_a_tasks_likelihood_is() -> None:
    relative = {"class": 1.0, "depth": 20.0, "segmentation": 20.0}
    assert {name: task.scale for name, task in load_setting("scenes").tasks.items()} == relative
    tried = {
        score.samples.guidance[0].model.task: tuple(
            score.samples.guidance[0].scale for score in cell.candidates
        )
        for cell in needed(dense())
        if isinstance(cell, Selection)
        for score in cell.candidates
    }
    every = BUDGETS["default"].scales
    assert tried == {name: tuple(k * scale for scale in every) for name, k in relative.items()}
    single = replace(scenes_lab(), budget=replace(BUDGETS["default"], scales=(8.0,)))
    settled = {
        (part.model.task, part.scale)
        for cell in needed(SWEEPS["dense"].build(single))
        if isinstance(cell, Samples)
        for part in cell.guidance
    }
    assert settled == {(name, 8 * k) for name, k in relative.items()}


def test_dense_sweeps_need_a_setting_with_the_tasks() -> None:
    with pytest.raises(UserError, match="choose --setting scenes"):
        Options(("dense",), "fashion")
    assert "dense" not in Options(("all",), "fashion").names
    assert "dense" in Options(("all",), "scenes").names


def test_a_bank_is_trained_on_what_its_task_says() -> None:
    banks = [cell for cell in needed(dense()) if isinstance(cell, Experts)]
    assert {bank.task for bank in banks} == {"class", "depth", "segmentation"}
    for bank in banks:
        assert bank.predictor == {"class": "resnet"}.get(bank.task, bank.task)
        assert (bank.transferred_task() == DepthTask(aligned=False)) == (bank.task == "depth")


def test_every_predictor_has_convolutions_of_encoder_and_decoder_to_adapt() -> None:
    setting, adapter = load_setting("scenes"), scenes_lab().experts(Recipe(), "resnet", 0).adapter
    for task in ("depth", "segmentation"):
        names = ExpertBank(setting.predictor(task), 2, adapter).expert(0).tensors()
        for part in ("encoder.0.conv1", "encoder.2.conv2", "decoder.0.conv1", "decoder.1.conv2"):
            assert f"{part}.lora_A" in names
