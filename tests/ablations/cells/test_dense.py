"""Guidance towards whole scenes: which cells a row is made of, and how samples are judged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.cells.dense import (
    PER_TARGET,
    Panel,
    ScaleChoice,
    TaskExperts,
    Trajectory,
    WantedSamples,
    WantedScore,
    WantedScored,
)
from ablations.cells.results import Result, Row
from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact, Store
from ablations.runs import Options, report
from ablations.settings.setting import BUDGETS, WEIGHTS, load_setting
from ablations.sweeps import SWEEPS, Lab, Recipe
from ablations.zoo.scenes import networks
from ablations.zoo.training import fingerprint
from ppap.diffusion.ddim import DDIM
from ppap.experts.bank import ExpertBank
from ppap.files.images import from_uint8
from ppap.tasks.tasks import DepthTask


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
    samples = [cell for cell in cells if isinstance(cell, WantedSamples)]
    alone = {s.steerings[0] for s in samples if len(s.steerings) == 1}
    together = [s for s in samples if len(s.steerings) == 3]
    assert together
    assert all(steering in alone for s in together for steering in s.steerings)
    banks = [cell for cell in cells if isinstance(cell, TaskExperts)]
    assert len(banks) == 3 * 3 * 3  # methods with experts, tasks, seeds


def test_scales_are_chosen_on_seeds_and_scenes_that_no_row_is_measured_on() -> None:
    cells = needed(dense())
    choices = [cell for cell in cells if isinstance(cell, ScaleChoice)]
    assert len(choices) == 12
    trying = {score.samples.first_seed for choice in choices for score in choice.candidates}
    measured = {
        score.samples.first_seed
        for cell in cells
        if isinstance(cell, WantedScored)
        for score in cell.scores
    }
    assert len(measured) == 3
    spans = [range(first, first + 10**7) for first in sorted(trying | measured)]
    assert all(a.stop <= b.start for a, b in pairwise(spans))


def test_the_wanted_figures_of_a_number_belong_together() -> None:
    setting = load_setting("scenes")
    numbers = range(7, 11)
    images = setting.wanted(numbers)
    assert images.shape == (4, 3, 32, 32)
    labels = setting.tasks["segmentation"].wanted(numbers)
    for k, shape in enumerate(setting.tasks["class"].wanted(numbers).tolist()):
        counts = torch.bincount(labels[k].flatten(), minlength=11)[1:]
        assert counts[shape] > 0
    again = setting.tasks["depth"].wanted([9])
    assert torch.equal(again[0], setting.tasks["depth"].wanted(numbers)[2])


SAMPLES = WantedSamples(scenes_lab().setup, DDIM(25), (), 50, 40)


def scored(images: np.ndarray[Any, Any]) -> Artifact:
    drawn = Artifact({"scales": [1.0]}, {"images": images})
    return WantedScore(SAMPLES).compute(lambda cell: drawn)


def test_samples_share_their_target_in_pairs() -> None:
    task = load_setting("scenes").tasks["class"]
    expected = torch.cat([task.wanted([50 + i // PER_TARGET]) for i in range(40)])
    assert torch.equal(SAMPLES.targets(task), expected)


def test_the_wanted_scenes_themselves_score_best() -> None:
    wanted = load_setting("scenes").wanted(range(50, 70)).repeat_interleave(2, 0).numpy()
    right, wrong = scored(wanted).meta, scored(wanted[::-1].copy()).meta
    assert right["accuracy"] > 0.7 > wrong["accuracy"]
    assert right["mean_iou"] > 0.6 > wrong["mean_iou"]
    assert right["depth_rmse"] < 0.5 * wrong["depth_rmse"]
    assert right["depth_delta_1"] > 0.9
    assert right["pixel_error"] < 0.5 * wrong["pixel_error"]
    assert right["diversity"] == 0  # each target twice
    mixed = scored(wanted.reshape(20, 2, 3, 32, 32).swapaxes(0, 1).reshape(wanted.shape).copy())
    assert mixed.meta["diversity"] == pytest.approx(1, abs=0.3)


def test_the_least_error_within_five_percent_and_then_the_lowest_fid_is_chosen() -> None:
    candidates = tuple(WantedScore(replace(SAMPLES, first_seed=k)) for k in range(4))
    errors, fids = [0.100, 0.104, 0.107, 0.5], [9.0, 8.0, 2.0, 1.0]
    found = {
        cell.key: Artifact({"depth_rmse": e, "accuracy": 1 - e, "fid": f, "scales": [10.0 * k]})
        for k, (cell, e, f) in enumerate(zip(candidates, errors, fids, strict=True))
    }
    for task in ("depth", "class"):
        chosen = ScaleChoice(task, candidates).compute(lambda cell: found[cell.key])
        assert chosen.meta["scale"] == 10


def test_a_panel_shows_targets_samples_and_what_is_seen_in_them() -> None:
    wanted = load_setting("scenes").wanted(range(50, 70)).repeat_interleave(2, 0).numpy()
    lab = scenes_lab()
    panel = Panel(lab.setup, lab.about("unguided", None, None), SAMPLES)
    made = panel.compute(lambda cell: Artifact({"scales": []}, {"images": wanted}))
    grid = made.arrays["grid"]
    assert grid.shape == (6, 8, 32, 32, 3)
    assert len(made.meta["record"]["labels"]) == 6
    np.testing.assert_array_equal(grid[0], grid[3])
    assert abs(grid[1].astype(float) - grid[4]).mean() < 20
    assert (grid[2] == grid[5]).all(-1).mean() > 0.9


def test_a_trajectory_ends_in_the_first_sample_of_its_row(tmp_path: Path) -> None:
    budget = replace(BUDGETS["smoke"], steps=10, synthetic=16, seeds=1)
    lab = replace(scenes_lab(), budget=budget)
    results = list(SWEEPS["dense"].build(lab))
    (strip,) = [result for result in results if isinstance(result, Trajectory)]
    store = Store(tmp_path)

    def load(cell: Cell) -> Artifact:
        if not store.holds(cell.key):
            store.put(cell.key, cell.compute(load))
        return store.get(cell.key)

    # A row of one: another batch size rounds otherwise, and the guides' kinks may amplify that.
    steered = tuple(replace(part, scale=10.0) for part in strip.samples.steerings)
    strip = replace(strip, samples=replace(strip.samples, steerings=steered, count=1))
    made, drawn = strip.compute(load), load(strip.samples)
    record, grid = made.meta["record"], made.arrays["grid"]
    assert drawn.meta["scales"] == [10.0] * 3
    assert grid.shape == (4, len(record["columns"]), 32, 32, 3)
    assert record["columns"][0] == "t = 920"
    assert record["columns"][-3:] == ["t = 80", "sample", "target"]
    assert record["experts"] == [4, 4, 3, 2, 2, 1, 1, 0, None, None]
    image = np.moveaxis(drawn.arrays["images"][0], 0, -1).astype(int)
    assert abs(grid[1, -2] - image).max() <= 1
    np.testing.assert_array_equal(grid[0, -2:], grid[1, -2:])
    store.put(strip.key, made)
    report([SWEEPS["dense"].record(lab)], [strip], store, tmp_path / "scenes-smoke")
    with np.load(tmp_path / "scenes-smoke" / "grids.npz") as written:
        np.testing.assert_array_equal(written[record["array"]], grid)
    assert (tmp_path / "scenes-smoke" / "dense-trajectory.png").stat().st_size > 5000
    distances = abs(grid[0, :-2].astype(int) - image).mean((1, 2, 3))
    assert (np.diff(distances) < 0).all()


def test_dense_sweeps_need_a_setting_with_the_tasks() -> None:
    with pytest.raises(UserError, match="choose --setting scenes"):
        Options(("dense",), "fashion")
    assert "dense" not in Options(("all",), "fashion").names
    assert "dense" in Options(("all",), "scenes").names


def test_a_bank_is_taught_what_its_task_says() -> None:
    banks = [cell for cell in needed(dense()) if isinstance(cell, TaskExperts)]
    assert {bank.task for bank in banks} == {"class", "depth", "segmentation"}
    for bank in banks:
        assert bank.predictor == {"class": "resnet"}.get(bank.task, bank.task)
        assert (bank.learned() == DepthTask(aligned=False)) == (bank.task == "depth")


def test_every_predictor_has_convolutions_of_encoder_and_decoder_to_adapt() -> None:
    setting, adapter = load_setting("scenes"), scenes_lab().experts(Recipe(), "resnet", 0).adapter
    for task in ("depth", "segmentation"):
        names = ExpertBank(setting.predictor(task), 2, adapter).expert(0).tensors()
        for part in ("encoder.0.conv1", "encoder.2.conv2", "decoder.0.conv1", "decoder.1.conv2"):
            assert f"{part}.lora_A" in names


def test_the_weights_are_those_that_the_card_tells_of() -> None:
    folder = WEIGHTS / "scenes"
    facts = json.loads((folder / "zoo.json").read_text())
    assert facts["fingerprint"] == fingerprint(folder, networks())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10 * 2**20


def test_predictors_see_what_clean_scenes_show() -> None:
    setting = load_setting("scenes")
    images = from_uint8(setting.wanted(range(200)))
    for task in setting.tasks.values():
        targets = task.wanted(range(200))
        for network in (setting.predictor(task.predictor), task.evaluator()):
            with torch.no_grad():
                assert task.task.score(network(images), targets).mean() > 0.6
