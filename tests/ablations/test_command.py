"""The command line on the embedded setting: from an empty store to tables, and mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations import data, records
from ablations.__main__ import SWEEPS, main
from ablations.methods import Result, methods
from ablations.settings import BUDGETS, load_setting
from ablations.stages import Samples

from .test_data import write

TINY = [
    "--budget", "smoke", "--predictors", "resnet", "--samples", "10", "--steps", "5",
    "--synthetic", "20", "--workers", "2",
]  # fmt: skip


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Fashion-MNIST, so that the test needs no network."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, compressed=False)
    monkeypatch.setenv("PPAP_DATA", str(folder))
    return folder


def test_the_sweep_runs_whole_and_a_second_time_computes_nothing(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "methods", *TINY, "--store", str(tmp_path / "store")]
    arguments += ["--output", str(tmp_path / "results")]
    assert main(arguments) == 0
    with (tmp_path / "results" / "methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [
        "unguided", "naive", "single", "multi-experts", "ppap",
    ]  # fmt: skip
    assert [float(row["trainable_share"]) > 0 for row in rows] == [False] * 2 + [True] * 3
    for row in rows:
        low, value, high = (
            float(row[key]) for key in ("accuracy_low", "accuracy", "accuracy_high")
        )
        assert 0 <= low <= value <= high <= 1
        assert float(row["fid_low"]) <= float(row["fid"]) <= float(row["fid_high"])
        assert row["sampler"] == "ddim25"
    grids = np.load(tmp_path / "results" / "grids.npz")
    assert grids["ppap/resnet"].shape == (10, 1, 32, 32)
    before = (tmp_path / "results" / "records.jsonl").read_text()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "0 cells computed" in capsys.readouterr().out
    assert (tmp_path / "results" / "records.jsonl").read_text() == before
    record = next(json.loads(line) for line in before.splitlines() if '"ppap"' in line)
    assert record["budget"] == "smoke-custom"


def test_every_method_draws_from_the_same_seeds_and_none_from_the_selections() -> None:
    results = list(methods(load_setting("fashion"), BUDGETS["full"], "full", ("resnet", "vit")))
    samples: list[Samples] = []
    pending = [needed for result in results for needed in result.inputs()]
    seen = set()
    while pending:
        cell = pending.pop()
        if cell.key not in seen:
            seen.add(cell.key)
            pending += cell.inputs()
            if isinstance(cell, Samples):
                samples.append(cell)
    measured = {cell.first_seed for cell in samples if cell.count == 500}
    selecting = {cell.first_seed for cell in samples if cell.count == 150}
    assert len(measured) == 3
    assert len(selecting) == 1
    spans = [(seed, seed + 500) for seed in measured] + [(seed, seed + 150) for seed in selecting]
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "methods", "--setting", "imagenet"], "choose from fashion"),
        (["run", "methods", "--predictors", "alexnet"], "resnet, vit"),
        (["run", "methods", "--samples", "3"], "--samples"),
        (["run", "nothing"], "--help"),
        (["run", "methods", "--budget", "huge"], "--help"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(ended.code or 0)
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_missing_data_set_is_told_and_what_needs_none_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def naive_alone(*about: Any) -> Iterator[Result]:
        yield from (r for r in methods(*about) if r.method.name == "naive" and not is_row(r))

    def is_row(result: Result) -> bool:
        return type(result).__name__ == "Row"

    monkeypatch.setitem(SWEEPS, "methods", naive_alone)
    monkeypatch.setenv("PPAP_DATA", str(tmp_path))
    arguments = ["run", "methods", *TINY, "--store", str(tmp_path / "store")]
    assert main([*arguments, "--output", str(tmp_path / "results")]) == 2
    (told, skipped) = capsys.readouterr().err.strip().splitlines()[-2:]
    assert told.startswith("error: ")
    assert data.FILES["train"][0] in told
    assert "skipped" in skipped
    kinds = {record["kind"] for record in records.read(tmp_path / "results").values()}
    assert kinds == {"grid", "tradeoff"}


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "methods", *TINY, "--dry-run", "--store", str(tmp_path / "store")]
    assert main([*arguments, "--output", str(tmp_path / "results")]) == 0
    assert "cells to compute" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert not list((tmp_path / "store").rglob("*.artifact"))
