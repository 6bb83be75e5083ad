"""The plain and the fast path of the harness: one run on each, and what their records say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.__main__ import main
from ablations.cells import guidance
from ablations.cells.experts import Experts
from ablations.cells.guidance import Model
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell
from ablations.machine.kept import Kept
from ablations.machine.store import Artifact, Store
from ablations.runs import Options
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps.recipes import Recipe
from ppap.guidance.guides import IgnoreTimestep

STRIPES = [
    "run", "methods", "--plugin", "ablations.examples.stripes", "--setting", "stripes",
    "--budget", "smoke", "--rows", "naive", "multi-experts", "--workers", "1",
]  # fmt: skip
ROUNDING = 0.02
"""Of figures of ten samples: a pixel on the edge of two grey levels moves the distance a little."""


def ran(path: str, folder: Path) -> list[dict[str, Any]]:
    """The records of a smoke run."""
    own = ["--store", str(folder / "store"), "--output", str(folder / path)]
    assert main([*STRIPES, f"--{path}", *own]) == 0
    lines = (folder / path / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def figures(record: dict[str, Any]) -> dict[str, float]:
    """The measured numbers of a record; not how long it took."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, float) and "seconds" not in name and "per_second" not in name
    }


def test_a_smoke_run_on_both_paths_differs_by_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPAP_PLUGINS", "")
    monkeypatch.setitem(BUDGETS, "smoke", replace(BUDGETS["smoke"], ancestral_steps=10))
    by_path = {path: ran(path, tmp_path) for path in ("plain", "fast")}
    rows = {
        path: {(r["method"], r["sampler"]): r for r in records if r["kind"] == "row"}
        for path, records in by_path.items()
    }
    assert rows["plain"].keys() == rows["fast"].keys()
    assert {method for method, _ in rows["plain"]} == {"naive", "multi-experts", "single"}
    for key, plain in rows["plain"].items():
        fast = rows["fast"][key]
        assert (plain["path"], fast["path"]) == ("plain", "fast")
        assert plain["key"] != fast["key"]
        assert figures(fast) == pytest.approx(figures(plain), rel=ROUNDING, abs=ROUNDING), key
        losses = [r["provenance"]["configuration"]["losses"] for r in (plain, fast)]
        assert losses[1] == [pytest.approx(each, rel=ROUNDING) for each in losses[0]]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"budget": "full"}, "fast"),
        ({}, "plain"),
        ({"path": "fast"}, "fast"),
        ({"budget": "smoke"}, "plain"),
        ({"budget": "smoke", "path": "fast"}, "fast"),
        ({"budget": "full", "path": "plain"}, "plain"),
        ({"setting": "imagenet256", "rehearse": True}, "plain"),
    ],
)
def test_a_run_is_on_the_fast_path_unless_it_is_short(given: dict[str, Any], path: str) -> None:
    lab = Options(sweeps=("methods",), **given).lab()
    assert lab.setting.path == path
    assert lab.setup.path == path


def test_without_a_compiler_a_run_is_on_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.runs.can_compile", lambda: False)
    assert Options(path="fast").lab().setup.path == "plain"


def test_a_training_is_compiled_where_it_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def transfer(*arguments: object, compile: bool, **options: object) -> list[float]:
        del arguments, options
        asked.append(compile)
        return [0.0]

    monkeypatch.setattr("ablations.cells.experts.transfer", transfer)
    lab = Options(budget="full", predictors=("resnet",)).lab()
    for path in ("plain", "fast"):
        for length in (0.1, 1.0):
            setting = replace(lab.setting, path=path)
            recipe = Recipe(experts=1, supervision="labelled", length=length)
            experts = replace(lab, setting=setting).experts(recipe, "resnet", 0)
            monkeypatch.setattr(Experts, "training_set", lambda *_: (torch.zeros(1), None))
            with Kept(Store(tmp_path), experts.key) as kept:
                experts.resume(lambda cell: Artifact({}, {}), kept)
    assert asked == [False, False, False, True]


def test_batches_of_the_fast_path_are_of_one_size() -> None:
    plain = Setup.of(load_setting("fashion"))
    fast = replace(plain, path="fast")
    assert [plain.batch_for(count) for count in (60, 200, 500)] == [128, 128, 128]
    assert [fast.batch_for(count) for count in (60, 200, 500)] == [60, 100, 125]


def test_the_fast_path_keeps_the_model_of_a_guide_and_the_plain_path_makes_it_anew() -> None:
    def load(cell: Cell) -> Artifact:
        raise AssertionError(cell)

    plain, model = Setup.of(load_setting("fashion")), Model("resnet")
    fast = replace(plain, path="fast")
    guidance._recent.clear()
    assert model.predict(plain, load) is not model.predict(plain, load)
    kept = model.predict(fast, load)
    assert isinstance(kept, IgnoreTimestep)
    assert model.predict(fast, load) is kept
    assert Model("vit").predict(fast, load) is not kept
    assert model.predict(fast, load) is kept
