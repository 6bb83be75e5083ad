"""The command line on the embedded setting: from an empty store to tables, and mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ablations import inspection
from ablations.__main__ import main
from ablations.cells.results import Result, Row
from ablations.errors import UserError
from ablations.machine import records
from ablations.machine.engine import run
from ablations.machine.store import Artifact, Store
from ablations.runs import OUTPUT, RESULTS, ROOT, Options
from ablations.settings import data
from ablations.settings.catalogue import BUDGETS
from ablations.sweeps import HEADLINE, SWEEPS, Lab
from ablations.sweeps.headline import methods
from ppap.compute.cpu import instruction_set
from ppap.files.checkpoints import CheckpointError
from tests.ablations.settings.test_data import write
from tests.ablations.toy import Number, Sum

FEW = ["--budget", "smoke", "--predictors", "resnet", "--samples", "10"]
UNTRAINED = [*FEW, "--workers", "2"]
TINY = [*FEW, "--steps", "5", "--synthetic", "20", "--workers", "2"]


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Fashion-MNIST, so that the test needs no network."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, compressed=False)
    monkeypatch.setenv("PPAP_DATA", str(folder))
    return folder


def naive_alone(lab: Lab) -> Iterator[Result]:
    """One method.

    Without its row, for speed.
    """
    yield from (r for r in methods(lab) if r.about.method == "naive" and not isinstance(r, Row))


def test_the_sweep_runs_whole_and_a_second_time_computes_nothing(
    tmp_path: Path,
    labelled: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorter = replace(BUDGETS["smoke"], ancestral_steps=20)
    monkeypatch.setitem(BUDGETS, "smoke", shorter)
    store, results = str(tmp_path / "store"), tmp_path / "results"
    arguments = ["run", "methods", *TINY, "--store", store, "--output", str(results)]
    assert main(arguments) == 0
    with (results / "methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["unguided", "naive", "single", "multi-experts", "ppap"]
    for sampler in ("ddim25", "20"):
        part = [row for row in rows if row["sampler"] == sampler]
        assert [row["method"] for row in part] == names
        trained = [float(row["trainable_share"]) > 0 for row in part]
        assert trained == [False] * 2 + [True] * 3
    for row in rows:
        low, value, high = (
            float(row[key]) for key in ("accuracy_low", "accuracy", "accuracy_high")
        )
        assert 0 <= low <= value <= high <= 1
        assert float(row["fid_low"]) <= float(row["fid"]) <= float(row["fid_high"])
    grids = np.load(results / "grids.npz")
    assert grids["methods/ppap/resnet/ddim25"].shape == (10, 1, 32, 32)
    before = (results / "records.jsonl").read_text()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "0 cells computed" in capsys.readouterr().out
    assert (results / "records.jsonl").read_text() == before

    found = [json.loads(line) for line in before.splitlines()]
    kinds = {record["kind"] for record in found}
    assert kinds == {"sweep", "row", "comparison", "grid", "tradeoff", "noise_accuracy"}
    row = next(r for r in found if r["kind"] == "row" and r["method"] == "ppap")
    assert row["budget"] == "smoke+steps=5+synthetic=20"
    by_key = {record["key"]: record for record in found}
    compared = [record for record in found if record["kind"] == "comparison"]
    assert len(compared) == 6
    for record in compared:
        ours, reference = by_key[record["row"]], by_key[record["reference"]]
        assert reference["method"] == "single"
        difference = record["differences"]["accuracy"]["value"]
        assert difference == pytest.approx(ours["accuracy"] - reference["accuracy"])

    assert main(["show", row["key"], "--store", store]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert row["key"] in shown[0]
    assert any("5 data-free resnet experts" in line for line in shown)
    assert any("20 synthetic images" in line for line in shown)
    status = ["status", "methods", *TINY[:-2], "--store", store]
    assert main(status) == 0
    assert "complete" in capsys.readouterr().out

    assert main(["compare", str(results), str(results)]) == 0
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary.startswith("10 rows in both: ")
    assert ", 0 outside the other's interval (" in summary
    assert " selected guidance scales compared, 0 flipped" in summary
    hardware = row["provenance"]["hardware"]
    assert hardware["threads"] == 1
    assert hardware["instruction_set"] == instruction_set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "methods", "--setting", "imagenet"], "choose from fashion"),
        (["run", "methods", "--predictors", "alexnet"], "resnet, vit"),
        (["run", "methods", "--samples", "3"], "--samples"),
        (["run", "methods", "--samples", "many"], "--help"),
        (["run", "methods", "--workers", "0"], "--workers"),
        (["run", "methods", "--seeds", "0"], "--seeds"),
        (["run", "nothing"], "methods, experts"),
        (["run", "dense"], "which fashion does not have; choose --setting scenes"),
        (["run", "methods", "--budget", "huge"], "smoke, default, full"),
        (["run", "methods", "--engine", "slurm"], "local, ray, accelerate"),
        (["run", "methods", "--ray-address", "auto"], "--engine ray"),
        (["run", "methods", "--engine", "accelerate", "--workers", "2"], "--workers is not for"),
        (["gc", "--older-than", "-5"], "--older-than must be at least 0 minutes, got -5"),
        (["run", "methods", "--store", "carrier-pigeon://x"], "--store"),
        (["run", "methods", "--store", "memory://x"], "--store"),
        (["run", "methods", "--colour"], "--help"),
        (["compare", "nowhere", "nowhere"], "nowhere has no records.jsonl"),
        (["fly"], "--help"),
        ([], "--help"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(arguments)
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1


def test_a_checkpoint_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(name: str) -> NoReturn:
        raise CheckpointError(f"{name} is damaged:\n\tno header")

    monkeypatch.setattr("ablations.runs.load_setting", damaged)
    assert main(["run", "methods", "--dry-run"]) == 2
    assert capsys.readouterr().err == "error: fashion is damaged: no header\n"


def test_help_names_every_sweep_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    for word in (*SWEEPS, "--engine", "--store", "--dry-run", "headline"):
        assert word.replace("-", "") in said.replace("-", "").replace(" ", "")


def test_the_list_is_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "methods *: " in listed
    assert "--budget default: 3 seeds x 100 samples per row; 400 training steps of 64" in listed
    assert "(" not in listed.partition("--budget ")[2]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "fashion-default"),
        ({"samples": 100}, "fashion-default"),
        ({"samples": 300}, "fashion-default+samples=300"),
        ({"budget": "smoke", "steps": 20, "seeds": 2}, "fashion-smoke+seeds=2+steps=20"),
    ],
)
def test_a_run_has_a_folder_of_its_own_that_git_ignores(changes: dict[str, Any], name: str) -> None:
    options = Options(**changes)
    lab = options.lab()
    assert options.folder(lab) == OUTPUT / name
    assert lab.budget_name == name.removeprefix("fashion-")
    assert ".ppap/" in (ROOT / ".gitignore").read_text().splitlines()
    assert OUTPUT.is_relative_to(ROOT / ".ppap")
    assert Options(**changes, output=Path("here")).folder(lab) == Path("here")


def test_without_a_sweep_smoke_is_of_all_and_the_default_of_the_headline() -> None:
    assert Options().names == HEADLINE
    assert set(HEADLINE) < set(Options(budget="smoke").names)
    assert Options(budget="smoke", sweeps=("rank",)).names == ("rank",)


def test_a_missing_data_set_is_told_and_what_needs_none_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SWEEPS, "methods", replace(SWEEPS["methods"], function=naive_alone))
    monkeypatch.setenv("PPAP_DATA", str(tmp_path))
    results = tmp_path / "results"
    arguments = ["run", "methods", *UNTRAINED, "--store", str(tmp_path / "store")]
    assert main([*arguments, "--output", str(results)]) == 2
    (told, skipped) = capsys.readouterr().err.strip().splitlines()[-2:]
    assert told.startswith("error: ")
    assert data.FILES["train"][0] in told
    assert "skipped" in skipped
    found = records.read(results).values()
    assert {record["kind"] for record in found} == {"sweep", "grid", "tradeoff", "failure"}
    (failure,) = (record for record in found if record["kind"] == "failure")
    assert failure["reason"].startswith("UserError: ")
    assert failure["needed_by"] == ["methods: noisecurve naive, resnet"]
    assert not failure["resolved"]
    places = ["--store", str(tmp_path / "store"), "--output", str(results)]
    assert main(["status", "methods", *FEW, *places]) == 0
    assert f"failed: {failure['label']}: UserError: " in capsys.readouterr().out

    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, compressed=False)
    monkeypatch.setenv("PPAP_DATA", str(folder))
    assert main([*arguments, "--output", str(results)]) == 0
    (failure,) = (r for r in records.read(results).values() if r["kind"] == "failure")
    assert failure["resolved"]


def test_a_cell_that_breaks_is_named_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SWEEPS, "methods", replace(SWEEPS["methods"], function=naive_alone))
    monkeypatch.setenv("PPAP_DEVICE", "nonsense")
    arguments = ["run", "methods", *UNTRAINED, "--store", str(tmp_path / "store")]
    assert main([*arguments, "--output", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert "failed: samples resnet (" in error
    assert "RuntimeError" in error


def test_all_sweeps_are_those_that_the_setting_can_run() -> None:
    assert "tuning" in Options(("all",)).names
    public = Options(("all",), setting="glide", rehearse=True).names
    assert "claims" in public
    assert not {"tuning", "dense"} & {*public}


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "methods", *TINY, "--dry-run", "--store", str(tmp_path / "store")]
    assert main([*arguments, "--output", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    assert "cells to compute on the plain path" in out
    assert "methods: 0 of " in out
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "store").exists()


def test_gc_keeps_what_records_need_and_removes_the_rest_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    kept, unneeded = Sum((Sum((Number(1),)), Number(2))), Sum((Number(2), Number(3)))
    run([kept, unneeded], store, 1, quiet=True)
    half = Path(store.path(Number(1).key) + ".abc.part")
    half.write_bytes(b"half")
    results = tmp_path / "results"
    records.update(results / "any", [{"key": kept.key, "kind": "row"}])
    command = ["gc", "--store", store.url, "--results", str(results), "--older-than", "0"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert str(half) in said
    assert store.path(unneeded.key) in said
    assert store.path(Number(3).key) in said
    assert "3 files" in said
    assert store.holds(unneeded.key)
    assert main([*command, "--delete"]) == 0
    wanted = {kept.key, Sum((Number(1),)).key, Number(1).key, Number(2).key}
    assert set(store.find()) == wanted
    assert not half.exists()
    assert main([*command[:-1], "60"]) == 0
    assert "0 files" in capsys.readouterr().out.splitlines()[-1]


def test_gc_without_records_would_remove_everything_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    run([Number(1)], store, 1, quiet=True)
    assert main(["gc", "--store", store.url, "--results", str(tmp_path / "none")]) == 2
    assert "--results" in capsys.readouterr().err
    assert store.holds(Number(1).key)


def test_artifacts_that_do_not_name_their_inputs_keep_them_all_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    cell = Sum((Sum((Number(1),)), Number(2)))
    run([cell], store, 1, quiet=True)
    for key in store.find():
        found = store.get(key)
        meta = {name: value for name, value in found.meta.items() if name != "inputs"}
        store.put(key, Artifact(meta, found.arrays))
    records.update(tmp_path / "results", [{"key": cell.key, "kind": "row"}])
    assert inspection.garbage(store, [tmp_path / "results"], 0) == []


def test_show_tells_of_a_record_whose_artifacts_are_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(
        key for key, r in records.read(RESULTS / "fashion-full").items() if r["kind"] == "row"
    )
    assert main(["show", key, "--store", str(tmp_path)]) == 0
    first, *more = capsys.readouterr().out.splitlines()
    assert key in first
    assert "commit" in first
    assert all(line.startswith("  ") for line in more)
    assert "  hardware: cores 2, cpu AMD EPYC, memory_gib 23.5" in more
    assert any(line.startswith("  packages: ") and "torch 2." in line for line in more)
    assert any(line.startswith('  samples: {"count": 500') for line in more)
    assert sum("not in the store" in line for line in more) == 3  # one sample set per seed


def test_show_tells_of_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    run([Sum((Number(1),))], store, 1, quiet=True)
    Path(store.path(Number(1).key)).write_bytes(b"damaged")
    assert main(["show", Sum((Number(1),)).key[:8], "--store", store.url]) == 0
    whole, damaged = capsys.readouterr().out.splitlines()
    assert whole.startswith(Sum((Number(1),)).key)
    assert damaged == f"  {Number(1).key}  damaged"


def test_show_wants_a_key_that_is_there_and_unique(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    run([Number(value) for value in range(20)], store, 1, quiet=True)
    places = ["--store", store.url, "--results", str(tmp_path / "none")]
    assert main(["show", "zz", *places]) == 2
    assert "no key" in capsys.readouterr().err
    assert main(["show", "", *places]) == 2
    assert "20 keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "names", "named"),
    [
        ("predictors", ("resnet", "vit", "resnet"), "resnet"),
        ("tasks", ("class", "class"), "class"),
        ("plugin", ("csv", "csv"), "csv"),
    ],
)
def test_what_is_named_twice_is_refused(option: str, names: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=f"--{option} has '{named}' twice; list each once"):
        Options(**{option: names})  # type: ignore[arg-type]
