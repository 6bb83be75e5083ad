"""Only an explicit command writes among the committed results, and no row is there twice."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ablations import publish as publishing
from ablations.__main__ import main
from ablations.machine import records
from ablations.publish import publish
from reports.build import PAGE, RESULTS, results_folders
from reports.claim_tables import arms_csv, claims_csv
from reports.identity import RECORDS_FILE
from reports.records import RecordError, read_folder
from reports.tables import csv_table
from tests.reports.conftest import failure, grid, row, sweep, write_folder


def test_a_run_is_merged_and_its_rows_replace_those_of_other_keys(tmp_path: Path) -> None:
    root = tmp_path / "results"
    kept, old = row("naive", "vit"), row("ppap", "vit")
    write_folder(root / "fashion-test", [kept, old, grid("naive", "vit")])
    new = row("ppap", "vit", fid=9.0) | {"key": "of changed code"}
    run = write_folder(tmp_path / "run", [new, grid("ppap", "vit")])
    assert publish(run, root) == root / "fashion-test"
    (found,) = read_folder(root / "fashion-test").sweeps
    assert dict(zip(found.rows["method"], found.rows["key"], strict=True)) == {
        "naive": kept["key"],
        "ppap": "of changed code",
    }
    assert {drawn.method for drawn in found.grids} == {"naive", "ppap"}
    with np.load(root / "fashion-test" / "grids.npz") as grids:
        assert set(grids) == {"naive/vit", "ppap/vit"}
    before = (root / "fashion-test" / "records.jsonl").read_bytes()
    assert publish(run, root) == publish(root / "fashion-test", root)
    assert (root / "fashion-test" / "records.jsonl").read_bytes() == before


def test_the_command_builds_what_it_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "fashion-test", sweep())
    root = tmp_path / "published"
    assert main(["publish", str(folder), "--into", str(root)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert str(root / "fashion-test" / "methods.csv") in written
    assert written[-1] == str(root / "index.html")
    assert not (folder / "methods.csv").exists()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([row("ppap", "vit", budget="rehearsal")], "rehearsal"),
        ([row("ppap", "vit"), failure("Row ppap")], "lacks what Row ppap"),
        ([{"kind": "row"}], "row: sweep is missing"),
        ([], "is empty"),
    ],
)
def test_what_is_no_result_is_not_published(
    lines: list[dict[str, object]], problem: str, tmp_path: Path
) -> None:
    run = write_folder(tmp_path / "run", lines)
    with pytest.raises(RecordError, match=problem):
        publish(run, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_of_several_runs_all_are_results_or_none_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_folder(tmp_path / "good", [row("ppap", "vit")])
    lacking = write_folder(tmp_path / "lacking", [row("naive", "vit"), failure("Row ppap")])
    root = tmp_path / "results"
    assert main(["publish", str(good), str(lacking), "--into", str(root)]) == 2
    assert "lacks what Row ppap" in capsys.readouterr().err
    assert not root.exists()


def test_a_damaged_target_is_left_as_it_is(tmp_path: Path) -> None:
    run = write_folder(tmp_path / "run", sweep())
    target = tmp_path / "results" / "fashion-test"
    target.mkdir(parents=True)
    (target / "records.jsonl").write_text("damaged\n")
    with pytest.raises(RecordError, match=r"records\.jsonl:1: not JSON"):
        publish(run, tmp_path / "results")
    assert [path.name for path in target.iterdir()] == ["records.jsonl"]


def test_the_committed_results_have_one_page_however_their_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(folders: Sequence[Path], target: Path) -> list[Path]:
        del folders
        return [target]

    monkeypatch.setattr(publishing, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publishing, "build_page", built)
    monkeypatch.setattr(publishing, "build", lambda folder: [])
    run = write_folder(tmp_path / "run", sweep())
    (tmp_path / "link").symlink_to(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "results", Path("results"), Path("link"), Path("run/../results")):
        assert publishing.publish_all([run], root) == [PAGE]
    assert publishing.publish_all([run], Path("others")) == [Path("others/index.html")]


@pytest.mark.parametrize("folder", results_folders(), ids=lambda folder: folder.name)
def test_no_committed_table_has_a_row_twice_and_each_is_that_of_its_records(
    folder: Path,
) -> None:
    found = read_folder(folder)
    assert folder == RESULTS / f"{found.setting}-{found.budget}"
    for kept in found.sweeps:
        arms = [(arm.predictor, arm.method, arm.sampler) for arm in kept.arms]
        claims = [(finding.claim.predictor, finding.claim.name) for finding in kept.findings]
        for name, one, table in (
            ("curves", arms, arms_csv(kept.arms)), ("contrasts", claims, claims_csv(kept.findings)),
        ):  # fmt: skip
            assert len(set(one)) == len(one)
            path = folder / f"{kept.sweep}-{name}.csv"
            assert (path.read_text(encoding="utf-8") == table) if one else not path.exists()
        rows = kept.rows
        if rows.empty:
            assert arms
            continue
        axes = [json.dumps(value, sort_keys=True) for value in rows["axes"]]
        names = list(zip(rows["predictor"], rows["method"], rows["sampler"], axes, strict=True))
        assert len(set(names)) == len(names)
        table = (folder / f"{kept.sweep}.csv").read_text(encoding="utf-8")
        assert table == csv_table(kept)
        with (folder / f"{kept.sweep}.csv").open(encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == len(names)
    lines = (folder / RECORDS_FILE).read_text().splitlines()
    assert len(records.read(folder)) == len(lines), "no record that another replaces"
