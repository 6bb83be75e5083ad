"""Pictures of samples beside their targets, and of a sample on its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablations.cells.pictures import Grid, Panel, Trajectory
from ablations.cells.samples import Samples
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell
from ablations.machine.kept import Kept
from ablations.machine.store import Artifact, Store
from ablations.runs import report
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.settings.setting import TargetOrder
from ablations.sweeps import SWEEPS, Lab
from ppap.diffusion.ddim import DDIM


def scenes_lab() -> Lab:
    budget = replace(BUDGETS["smoke"], steps=10, synthetic=16, seeds=1)
    return Lab(load_setting("scenes"), budget, "smoke", ("resnet",))


@pytest.mark.parametrize(
    ("order", "first", "count", "columns"),
    [
        (TargetOrder(), 50, 45, 4),  # the classes in turn
        (TargetOrder(), 50, 7, 1),
        (TargetOrder(from_seed=True), 53, 45, 4),
        (TargetOrder(paired=True), 50, 64, 6),  # two of each in turn
    ],
)
def test_a_grid_has_samples_of_one_class_in_a_row_whatever_their_order(
    order: TargetOrder, first: int, count: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = replace(load_setting("fashion"), order=order)
    monkeypatch.setattr(Setup, "load", lambda setup: setting)
    setup = Setup.of(setting)
    samples = Samples(setup, DDIM(25), (), first, count)
    asked = samples.targets("class").numpy()
    shade = np.stack([asked, np.arange(count)], axis=1).astype(np.uint8)[:, None, None]
    lab = Lab(setting, BUDGETS["smoke"], "smoke", ("resnet",))
    drawn = Artifact({"scales": []}, {"images": shade})
    made = Grid(setup, lab.about("unguided", None), samples).compute(lambda cell: drawn)
    grid, labels = made.arrays["grid"], made.meta["record"]["labels"]
    assert grid.shape == (min(10, count), columns, 1, 2)
    for row, label in zip(grid, labels, strict=True):
        assert {setting.classes[number] for number in row[..., 0].ravel()} == {label}
        assert (np.diff(row[:, 0, 1].astype(int)) > 0).all()  # the first ones, in their order


def test_a_panel_shows_targets_samples_and_what_is_seen_in_them() -> None:
    lab = scenes_lab()
    samples = Samples(lab.setup, DDIM(25), (), 50, 40)
    assert lab.setting.target_images is not None
    images = lab.setting.target_images(range(50, 70)).repeat_interleave(2, 0).numpy()
    panel = Panel(lab.setup, lab.about("unguided", None), samples)
    made = panel.compute(lambda cell: Artifact({"scales": []}, {"images": images}))
    grid, record = made.arrays["grid"], made.meta["record"]
    assert grid.shape == (6, 8, 32, 32, 3)
    assert record["scale"] == 0
    assert record["labels"] == [
        "target", "its depth", "its labels", "sample", "depth seen", "labels seen",
    ]  # fmt: skip
    np.testing.assert_array_equal(grid[0], grid[3])
    assert abs(grid[1].astype(float) - grid[4]).mean() < 20
    assert (grid[2] == grid[5]).all(-1).mean() > 0.9
    assert "score" not in record
    chosen = panel.compute(lambda cell: Artifact({"scales": [8], "score": 0.5}, {"images": images}))
    assert (chosen.meta["record"]["scale"], chosen.meta["record"]["score"]) == (8, 0.5)


def test_a_trajectory_ends_in_the_first_sample_of_its_row(tmp_path: Path) -> None:
    lab = scenes_lab()
    results = list(SWEEPS["dense"].build(lab))
    (strip,) = [result for result in results if isinstance(result, Trajectory)]
    store = Store(tmp_path)

    def load(cell: Cell) -> Artifact:
        if not store.holds(cell.key):
            with Kept(store, cell.key) as kept:
                store.put(cell.key, cell.resume(load, kept))
        return store.get(cell.key)

    # A row of one: another batch size rounds otherwise, and the guides' kinks may amplify that.
    guidance = tuple(replace(part, scale=10.0) for part in strip.samples.guidance)
    strip = replace(strip, samples=replace(strip.samples, guidance=guidance, count=1))
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
