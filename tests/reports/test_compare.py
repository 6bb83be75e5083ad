"""Two results folders side by side."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from reports.__main__ import main
from reports.compare import compare
from tests.reports.conftest import PROVENANCE, row, sweep, write_folder


def test_equal_folders_have_no_differences(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", sweep())
    second = write_folder(tmp_path / "b", list(reversed(sweep())))
    assert "9 rows in both, all with equal figures" in compare(first, second).markdown()


def test_a_change_is_told_and_whether_intervals_are_apart(tmp_path: Path) -> None:
    old = row("ppap", "vit")
    near = row("ppap", "vit", accuracy=old["accuracy"] + 0.001)
    far = row("ppap", "vit", fid=9.0, fid_low=8.5, fid_high=9.5)
    first = write_folder(tmp_path / "a", [old])
    text = compare(first, write_folder(tmp_path / "b", [near])).markdown()
    (line,) = [line for line in text.splitlines() if "accuracy" in line]
    assert "+0.001" in line
    assert "apart" not in line
    text = compare(first, write_folder(tmp_path / "c", [far])).markdown()
    (line,) = [line for line in text.splitlines() if "FID" in line]
    assert "-6.125" in line
    assert "intervals apart" in line


def test_what_only_one_has_is_listed(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", [row("ppap", "vit"), row("single", "vit")])
    second = write_folder(tmp_path / "b", [row("ppap", "vit"), row("naive", "vit")])
    text = compare(first / "records.jsonl", second).markdown()
    assert f"Only in {first / 'records.jsonl'}: methods / vit / single / ddim25." in text
    assert f"Only in {second}: methods / vit / naive / ddim25." in text


def test_figures_that_cannot_be_compared_are_said_to_be_so(tmp_path: Path) -> None:
    fewer = PROVENANCE | {"samples_per_fid": 10}
    first = write_folder(tmp_path / "a", [row("ppap", "vit")])
    second = write_folder(tmp_path / "b", [row("ppap", "vit", budget="full", provenance=fewer)])
    text = compare(first, second).markdown()
    assert "budgets differ: test and full" in text
    assert "sample counts of FID differ" in text


def test_the_command_prints_or_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "a", [row("ppap", "vit")])
    assert main(["compare", str(folder), str(folder)]) == 0
    assert capsys.readouterr().out.startswith("# ")
    assert main(["compare", str(folder), str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_csv_has_the_same_changes_with_their_intervals(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", [row("ppap", "vit")])
    second = write_folder(tmp_path / "b", [row("ppap", "vit", fid=9.0, fid_low=8.5, fid_high=9.5)])
    target = tmp_path / "changes.csv"
    assert main(["compare", str(first), str(second), "--csv", str(target)]) == 0
    with target.open() as file:
        (line,) = csv.DictReader(file)
    assert (line["metric"], line["method"], line["intervals_apart"]) == ("fid", "ppap", "True")
    names = ("first", "first_low", "first_high", "second", "second_low", "second_high", "change")
    found = [float(line[name]) for name in names]
    assert found == [15.125, 14.375, 15.625, 9.0, 8.5, 9.5, -6.125]


def test_a_csv_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_folder(tmp_path / "a", [row("ppap", "vit")]))
    assert main(["compare", folder, folder, "--csv", str(tmp_path / "none" / "x.csv")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_row_recorded_under_another_key_counts_once(tmp_path: Path) -> None:
    again = row("ppap", "vit", fid=20.0) | {"key": "another"}
    first = write_folder(tmp_path / "a", [row("ppap", "vit"), again])
    second = write_folder(tmp_path / "b", [row("ppap", "vit")])
    found = compare(first, second)
    assert found.shared == 1
    assert [(change.metric, change.first) for change in found.changes] == [("fid", 20.0)]


def test_a_bar_in_a_name_leaves_the_table_whole(tmp_path: Path) -> None:
    named = {"method": "a|b"}
    first = write_folder(tmp_path / "a", [row("ppap", "vit") | named])
    second = write_folder(tmp_path / "b", [row("ppap", "vit", fid=9.0) | named])
    assert "a\\|b, ddim25" in compare(first, second).markdown()
