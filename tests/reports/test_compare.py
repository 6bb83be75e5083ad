"""Two results folders side by side."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from reports.__main__ import main
from reports.compare import compare
from reports.records import read_folder
from tests.reports.conftest import PROVENANCE, claim, curve, row, sweep, write_folder


def test_equal_folders_have_no_differences(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", sweep())
    second = write_folder(tmp_path / "b", list(reversed(sweep())))
    found = compare(first, second)
    assert found.summary == (
        "9 rows in both: 18 figures with intervals compared, 0 outside the other's interval "
        "(0 with intervals apart); 0 selected guidance scales compared, 0 flipped; "
        "81 of all 81 figures are equal."
    )
    assert "**" not in found.markdown()


def test_a_change_is_marked_where_it_is_outside_the_others_interval(tmp_path: Path) -> None:
    old = row("ppap", "vit")  # FID 15.125 [14.375, 15.625]
    first = write_folder(tmp_path / "a", [old])

    def cell(name: str, **changes: float) -> str:
        second = write_folder(tmp_path / name, [row("ppap", "vit", **changes)])
        found = compare(first, second)
        (figure,) = [figure for figure in found.figures if figure.metric == "fid"]
        assert figure.text() in found.markdown()
        count = f"{int('**' in figure.text())} outside the other's interval"
        assert count in found.summary
        assert figure.intervals_apart == (name == "far")
        return figure.text()

    assert cell("near", fid=15.0) == "15.12 → 15.00"
    assert cell("ours out", fid=15.5, fid_low=15.25) == "**15.12** → 15.50"
    assert cell("theirs out", fid=16.0, fid_low=15.0, fid_high=17.0) == "15.12 → **16.00**"
    assert cell("far", fid=9.0, fid_low=8.5, fid_high=9.5) == "**15.12** → **9.000**"


def chosen(scale: float, method: str = "ppap") -> dict[str, Any]:
    """A row whose scale another cell has chosen."""
    made_from = {"samples": {"kind": "Samples", "scale": {"cell": "0123"}}}
    return row(method, "vit", scale=scale, provenance=PROVENANCE | {"configuration": made_from})


def test_a_selected_scale_that_flipped_is_marked_and_counted(tmp_path: Path) -> None:
    fixed = row("single", "vit", scale=16.0)
    first = write_folder(tmp_path / "a", [chosen(16.0), chosen(8.0, "naive"), fixed])
    second = write_folder(tmp_path / "b", [chosen(32.0), chosen(8.0, "naive"), fixed])
    found = compare(first, second)
    assert "2 selected guidance scales compared, 1 flipped" in found.summary
    assert "**16 → 32**" in found.markdown()


def test_the_machines_of_both_are_told(tmp_path: Path) -> None:
    hardware = PROVENANCE["hardware"] | {
        "instruction_set": "AVX2, oneDNN AVX2", "threads": 1, "limits": {}
    }  # fmt: skip
    newer = row("ppap", "vit", provenance=PROVENANCE | {"hardware": hardware})
    first = write_folder(tmp_path / "a", [row("ppap", "vit")])
    text = compare(first, write_folder(tmp_path / "b", [newer])).markdown()
    assert "First seen on Example CPU (2 cores), 8 GiB, torch 2.0" in text
    told = "Second seen on Example CPU (2 cores), AVX2, oneDNN AVX2, 1 thread per worker, 8 GiB"
    assert told in text


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
        (line,) = [line for line in csv.DictReader(file) if line["metric"] == "fid"]
    assert (line["method"], line["intervals_apart"]) == ("ppap", "True")
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
    assert len(found.shared) == 1
    changed = [figure for figure in found.figures if figure.change]
    assert [(figure.metric, figure.first) for figure in changed] == [("fid", 20.0)]


def test_a_row_without_a_sampler_is_compared_beside_those_with_one(tmp_path: Path) -> None:
    """What is weighed or timed is drawn by none."""
    weighed = row("single", "vit")
    del weighed["sampler"]
    first = write_folder(tmp_path / "a", [row("ppap", "vit"), weighed])
    second = write_folder(tmp_path / "b", [row("ppap", "vit")])
    assert compare(first, second).alone == (("methods / vit / single",), ())
    assert compare(second, first).alone == ((), ("methods / vit / single",))
    found = compare(first, first)
    assert "2 rows in both" in found.summary
    assert "| vit         | single       |" in found.markdown()


def test_rows_that_axes_alone_tell_apart_are_told_by_them(tmp_path: Path) -> None:
    made = [
        row("ppap", "vit", fid=float(rank)) | {"axes": {"rank": rank}, "key": f"rank-{rank}"}
        for rank in (1, 2)
    ]
    folder = write_folder(tmp_path / "a", [*made, row("single", "vit")])
    lines = compare(folder, folder).markdown().splitlines()
    assert sum('ppap, ddim25, {"rank": 1}' in line for line in lines) == 1
    assert sum('ppap, ddim25, {"rank": 2}' in line for line in lines) == 1
    assert any("| single, ddim25 " in line for line in lines)


def test_a_bar_in_a_name_leaves_the_table_whole(tmp_path: Path) -> None:
    named = {"method": "a|b"}
    first = write_folder(tmp_path / "a", [row("ppap", "vit") | named])
    second = write_folder(tmp_path / "b", [row("ppap", "vit", fid=9.0) | named])
    assert "a\\|b, ddim25" in compare(first, second).markdown()


def curves(by: float = 0.0, **changes: Any) -> list[dict[str, Any]]:
    """Two curves and the claim about them; of five experts all scores are ``by`` higher."""
    five = curve("multi-experts", **changes)
    five["points"] = [dict(point, score=point["score"] + by) for point in five["points"]]
    return [curve("single"), five, claim()]


def test_curves_are_compared_where_their_score_is_best(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", curves())
    found = compare(first, write_folder(tmp_path / "b", curves(0.02)))
    text = found.markdown()
    assert "## claims: curves" in text
    assert "| multi-experts, dpm8 | **0.930** → **0.950** |" in text
    # Neither what one network reaches nor the distance has moved.
    assert found.summary.startswith(
        "2 curves and 1 claim in both: 5 figures with intervals compared, 2 outside the other's "
        "interval (2 with intervals apart); 2 selected guidance scales compared, 0 flipped; "
        "1 verdict compared, 0 flipped"
    )


def test_a_verdict_that_flipped_is_marked_and_counted(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", curves())
    found = compare(first, write_folder(tmp_path / "b", curves(-0.3)))
    (verdict,) = [choice for choice in found.choices if choice.what == "verdict"]
    assert (verdict.first, verdict.second) == ("supported", "refuted")
    assert "**supported → refuted**" in found.markdown()
    assert "1 verdict compared, 1 flipped" in found.summary


def test_the_difference_of_a_claim_is_the_one_its_table_shows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", curves())
    (figure,) = [f for f in compare(folder, folder).figures if f.metric == "difference"]
    (finding,) = read_folder(folder).sweeps[0].findings
    assert finding.test
    assert (figure.first, figure.first_low) == (finding.test.value, finding.test.low)


def test_a_claim_that_one_run_could_not_test_has_a_verdict_and_no_difference(
    tmp_path: Path,
) -> None:
    first = write_folder(tmp_path / "a", curves())
    second = write_folder(tmp_path / "b", [curve("single"), claim()])
    found = compare(first, second)
    assert not any(figure.metric == "difference" for figure in found.figures)
    assert "**supported → open**" in found.markdown()
    assert "claims / resnet / multi-experts / dpm8 (curve)" in found.alone[0]


def test_distances_of_other_counts_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    fewer = curves()
    for record in fewer[:2]:
        record["points"] = [dict(point, samples=100) for point in record["points"]]
    first = write_folder(tmp_path / "a", curves())
    text = compare(first, write_folder(tmp_path / "b", fewer)).markdown()
    assert "sample counts of curves differ: do not compare distances" in text


def test_a_curve_of_one_unit_has_no_interval_to_be_outside(tmp_path: Path) -> None:
    few = [curve("single", units=1), curve("multi-experts", units=1), claim()]
    first, second = (write_folder(tmp_path / name, few) for name in ("a", "b"))
    found = compare(first, second)
    assert not any(figure.compared for figure in found.figures)
    assert "| single, dpm8" in found.markdown()


def test_runs_with_nothing_in_common_say_so(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", [row("ppap", "vit")])
    second = write_folder(tmp_path / "b", curves())
    assert compare(first, second).summary == "No row, curve or claim is in both."
