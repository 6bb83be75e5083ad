"""A results folder holds each result once, and knows what it was seen on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.errors import UserError
from ablations.machine import records
from ablations.runs import build_reports
from ppap.compute.cpu import cpu_model, instruction_set

Record = dict[str, Any]


def row(key: str, method: str = "ppap", **changes: Any) -> Record:
    named = {"setting": "fashion", "budget": "default", "sweep": "methods", "predictor": "vit"}
    facts = {"kind": "row", "key": key, "method": method, "sampler": "ddim25", "axes": {"rank": 4}}
    return named | facts | changes


def comparison(key: str, ours: str, reference: str) -> Record:
    return row(key) | {"kind": "comparison", "row": ours, "reference": reference}


def test_a_record_is_put_once_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    one, two = {"key": "a", "value": 1}, {"key": "b", "value": 2}
    assert records.update(tmp_path, [one, two]) == 2
    assert records.update(tmp_path, [one, two]) == 0
    assert records.update(tmp_path, [{"key": "a", "value": 3}]) == 1
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2
    assert records.read(tmp_path)["a"]["value"] == 3


def test_a_row_replaces_the_same_row_under_another_key_where_that_stood(tmp_path: Path) -> None:
    records.update(tmp_path, [row("old"), row("other", method="single")])
    records.update(tmp_path, [row("new", fid=3.0)])
    assert list(records.read(tmp_path)) == ["new", "other"]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"setting": "scenes"},
        {"budget": "default+samples=300"},
        {"sweep": "rank"},
        {"predictor": "resnet"},
        {"method": "single"},
        {"sampler": "250"},
        {"axes": {"rank": 8}},
        {"kind": "noise_accuracy"},
    ],
)
def test_a_row_of_another_identity_stands_beside(change: Record, tmp_path: Path) -> None:
    records.update(tmp_path, [row("a"), row("b", **change)])
    assert set(records.read(tmp_path)) == {"a", "b"}


def test_curves_points_and_pictures_are_replaced_by_their_own(tmp_path: Path) -> None:
    def of_each(version: str) -> list[Record]:
        return [
            row(f"{version}-{kind}-{n}", kind=kind, seed=n, scale=float(n), array=f"a/{n}")
            for kind in ("tradeoff", "noise_accuracy", "grid", "strip")
            for n in (0, 1)
        ]

    records.update(tmp_path, of_each("old"))
    records.update(tmp_path, of_each("new"))
    assert set(records.read(tmp_path)) == {record["key"] for record in of_each("new")}


def test_points_and_pictures_of_old_are_replaced_by_those_that_tell_their_sampler(
    tmp_path: Path,
) -> None:
    def of_each(version: str, sampler: str = "") -> list[Record]:
        told = {"sampler": sampler} if sampler else {}
        return [
            {k: v for k, v in row(f"{version}-{kind}", kind=kind).items() if k != "sampler"}
            | {"scale": 1.0, "seed": 0, "array": "a/ppap" + f"/{sampler}" * bool(sampler)}
            | told
            for kind in ("tradeoff", "grid", "strip")
        ]

    records.update(tmp_path, of_each("old"))
    records.update(tmp_path, [*of_each("ddim", "ddim25"), *of_each("ddpm", "250")])
    kept = {
        f"{version}-{kind}"
        for version in ("ddim", "ddpm")
        for kind in ("tradeoff", "grid", "strip")
    }
    assert set(records.read(tmp_path)) == kept


def test_a_comparison_goes_with_its_rows(tmp_path: Path) -> None:
    reference, other = row("r", method="single"), row("s", method="naive")
    before = [row("p"), reference, other, comparison("pr", "p", "r"), comparison("sr", "s", "r")]
    records.update(tmp_path, before)
    records.update(tmp_path, [row("p2"), comparison("p2r", "p2", "r")])
    assert set(records.read(tmp_path)) == {"p2", "r", "s", "p2r", "sr"}
    records.update(tmp_path, [row("r2", method="single"), comparison("p2r2", "p2", "r2")])
    assert set(records.read(tmp_path)) == {"p2", "r2", "s", "p2r2"}


def test_a_comparison_among_some_rows_replaces_none_among_all_of_the_same_rows(
    tmp_path: Path,
) -> None:
    whole = comparison("whole", "p", "r") | {"comparisons": 3}
    part = comparison("part", "p", "r") | {"comparisons": 3, "left_out": 2}
    rows = [row("p"), row("r", method="single")]
    records.update(tmp_path / "first", [*rows, part])
    assert set(records.read(tmp_path / "first")) == {"p", "r", "part"}
    records.update(tmp_path / "first", [whole])
    assert set(records.read(tmp_path / "first")) == {"p", "r", "whole"}
    records.update(tmp_path / "first", [*rows, part])
    assert set(records.read(tmp_path / "first")) == {"p", "r", "whole"}
    records.update(tmp_path / "first", [part | {"comparisons": 4}])  # of a larger family
    assert set(records.read(tmp_path / "first")) == {"p", "r", "part"}
    records.update(tmp_path / "first", [whole, row("p2"), part | {"row": "p2"}])
    assert set(records.read(tmp_path / "first")) == {"p2", "r", "part"}


def test_a_line_that_was_cut_short_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"key": "a", "value": 1}\n{"key": "b", "va')
    assert set(records.read(tmp_path)) == {"a"}
    assert records.update(tmp_path, [{"key": "b", "value": 2}]) == 1
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("line", ['{"key": "b", "va', "\xff", "[1]", '{"kind": "row"}', "null"])
def test_a_damaged_line_is_told_by_its_number_and_kept(line: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    damaged = f'{{"key": "a"}}\n{line}\n{{"key": "c"}}\n'.encode("latin-1")
    path.write_bytes(damaged)
    for use in (records.read, lambda folder: records.update(folder, [{"key": "d"}])):
        with pytest.raises(UserError, match=r"records\.jsonl:2 .*; mend or delete the line"):
            use(tmp_path)
    assert path.read_bytes() == damaged


def test_a_stamp_tells_the_machine_and_how_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = instruction_set()  # asked once in a process: before the environment says otherwise
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    stamp = records.stamp(1.23456)
    assert stamp["wall_seconds"] == 1.235
    hardware = stamp["hardware"]
    assert hardware["cpu"] == cpu_model()
    assert hardware["instruction_set"] == in_use
    assert hardware["limits"]["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
    assert hardware["threads"] == torch.get_num_threads()
    assert stamp["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_parts_from_two_machines_name_both() -> None:
    def part(created: str, cpu: str, commit: str, dirty: bool) -> Record:
        stamp = {"created": created, "commit": commit, "dirty": dirty, "wall_seconds": 1.5}
        return stamp | {"hardware": {"cpu": cpu}}

    found = records.joined(
        [part("2", "one", "b", True), part("1", "two", "a", False), part("3", "one", "b", False)]
    )
    assert found["created"] == "1"
    assert found["commit"] == "a"
    assert found["commits"] == ["a", "b"]
    assert found["dirty"]
    assert found["wall_seconds"] == 4.5
    assert found["machines"] == [{"cpu": "two"}, {"cpu": "one"}]


def test_two_writers_write_and_nothing_is_lost(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for place in range(20):
            records.update(tmp_path, [{"key": f"{writer}-{place}"}])

    writers = [threading.Thread(target=write, args=(n,)) for n in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(records.read(tmp_path)) == 40


def test_of_two_runs_that_report_into_one_folder_the_last_page_shows_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the second has records while the first, which has read its own, still draws."""

    def build(folder: Path) -> list[Path]:
        seen = " ".join(sorted(records.read(folder)))
        if seen == "first":
            other.start()
            other.join(0.3)
        (folder / "index.html").write_text(seen)
        return []

    def report(key: str) -> None:
        records.update(tmp_path, [{"key": key}])
        build_reports(tmp_path)

    monkeypatch.setattr("reports.build.build", build)
    other = threading.Thread(target=report, args=["second"])
    report("first")
    other.join()
    assert (tmp_path / "index.html").read_text() == "first second"


def test_grids_are_kept_by_name(tmp_path: Path) -> None:
    first, second = np.zeros((2, 3, 4, 4), np.uint8), np.ones((2, 3, 4, 4), np.uint8)
    records.write_grids(tmp_path, {"a/x": first})
    records.write_grids(tmp_path, {"b/x": second})
    with np.load(tmp_path / "grids.npz") as found:
        assert np.array_equal(found["a/x"], first)
        assert np.array_equal(found["b/x"], second)


def test_damaged_grids_are_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "grids.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"grids\.npz is no \.npz .* delete it"):
        records.write_grids(tmp_path, {"a/x": np.zeros((2, 3, 4, 4), np.uint8)})
    assert (tmp_path / "grids.npz").read_bytes() == b""
