"""The table of methods says what the records say, in the order and the form promised."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from reports.latex import escaped, latex_table
from reports.records import Records
from reports.sweep_figures import points_figure
from reports.tables import Table, csv_table, headline, legend, markdown_table
from tests.reports.conftest import (
    PROVENANCE,
    Record,
    comparison,
    info,
    row,
    sweep,
    write_folder,
)

COLUMNS = (
    "method,predictor,supervision,experts,trainable_share,sampler,scale,seeds,samples,"
    "accuracy,accuracy_low,accuracy_high,fid,fid_low,fid_high,kid,inception_score,precision,recall,"
    "images_per_second,peak_memory_mib"
)


def read(tmp_path: Path, *records: Record) -> Records:
    return Records.read(write_folder(tmp_path, list(records)))


def latex(records: Records) -> str:
    return latex_table(Table.of(records), headline(records), records.sweep)


def csv_rows(records: Records) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_table(records))))


def cells(records: Records) -> list[dict[str, str]]:
    """The Markdown table as one mapping a row, from bare column name to cell."""
    lines = [line.strip("|").split("|") for line in markdown_table(Table.of(records)).splitlines()]
    header, _, *body = [[cell.strip() for cell in line] for line in lines]
    names = [name.rstrip(" ↑↓") for name in header]
    return [dict(zip(names, line, strict=True)) for line in body]


def test_csv_has_exactly_the_promised_columns_in_order(folder: Path) -> None:
    assert csv_table(Records.read(folder)).splitlines()[0] == COLUMNS


def test_csv_numbers_are_the_records_numbers(folder: Path) -> None:
    put_in = {(r["method"], r["predictor"]): r for r in sweep() if r["kind"] == "row"}
    came_out = csv_rows(Records.read(folder))
    assert len(came_out) == len(put_in) == 9
    for line in came_out:
        record = put_in[line["method"], line["predictor"]]
        for name, text in line.items():
            expected = len(record["seeds"]) if name == "seeds" else record[name]
            if isinstance(expected, str):
                assert text == expected
            else:
                assert float(text) == pytest.approx(expected, rel=5e-6), name


def test_rows_are_grouped_by_predictor_in_the_papers_order(tmp_path: Path) -> None:
    extra = row("ppap", "resnet") | {"method": "ppap, shared start", "key": "extra"}
    other = row("ppap", "resnet") | {"method": "a method of others", "key": "other"}
    records = read(tmp_path, extra, other, *sweep())
    got = [(line["predictor"], line["method"]) for line in csv_rows(records)]
    arms = ["naive", "single", "multi-experts", "ppap"]
    resnet = [*arms, "a method of others", "ppap, shared start"]
    expected = [("none", "unguided")]
    expected += [("resnet", name) for name in resnet] + [("vit", name) for name in arms]
    assert got == expected
    assert [(line["predictor"], line["method"]) for line in cells(records)] == expected


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    old, new = row("ppap", "resnet", fid=99.0), row("ppap", "resnet", fid=11.0)
    (line,) = csv_rows(read(tmp_path, old, row("ppap", "resnet", fid=50.0), new))
    assert float(line["fid"]) == 11.0


def test_markdown_folds_the_interval_into_the_cell(tmp_path: Path) -> None:
    measured = row("ppap", "resnet", accuracy=0.886, accuracy_low=0.871, accuracy_high=0.899)
    (line,) = cells(read(tmp_path, measured))
    assert line["accuracy"] == "0.886 [0.871, 0.899]"
    assert not any(name.endswith(("_low", "_high")) for name in line)
    assert line["seeds"] == "3"
    assert line["samples"] == "3,000"


def test_header_marks_the_better_direction(folder: Path) -> None:
    header = markdown_table(Table.of(Records.read(folder))).splitlines()[0]
    marked = {name.strip() for name in header.split("|") if name.strip().endswith(("↑", "↓"))}
    higher = {"accuracy ↑", "IS ↑", "precision ↑", "recall ↑", "images/s ↑"}
    assert marked == higher | {"FID ↓", "peak MiB ↓"}


def test_each_sampler_has_its_rows_together_and_its_own_best(tmp_path: Path) -> None:
    drawn = [
        row(method, "resnet", sampler=sampler, accuracy=accuracy) | {"key": f"{method}-{sampler}"}
        for method, sampler, accuracy in (
            ("ppap", "250", 0.9),
            ("ppap", "ddim25", 0.8),
            ("single", "250", 0.7),
            ("single", "ddim25", 0.6),
        )
    ]
    lines = cells(read(tmp_path, *drawn))
    told = [(line["sampler"], line["method"], line["accuracy"][:2] == "**") for line in lines]
    assert told == [
        ("ddim25", "single", False),  # the quick sampler comes first
        ("ddim25", "ppap", True),
        ("250", "single", False),
        ("250", "ppap", True),
    ]


def test_best_guided_row_of_each_predictor_is_bold(tmp_path: Path) -> None:
    lines = cells(
        read(
            tmp_path,
            row("unguided", "none", accuracy=0.99, fid=1.0),
            row("single", "resnet", accuracy=0.5, fid=10.0),
            row("ppap", "resnet", accuracy=0.6, fid=12.0),
            row("single", "vit", accuracy=0.4, fid=30.0),
            row("ppap", "vit", accuracy=0.3, fid=20.0),
        )
    )

    def bold(name: str) -> list[tuple[str, str]]:
        return [(x["predictor"], x["method"]) for x in lines if x[name].startswith("**")]

    assert bold("accuracy") == [("resnet", "ppap"), ("vit", "single")]
    assert bold("FID") == [("resnet", "single"), ("vit", "ppap")]


def test_ties_are_all_bold_unless_every_row_ties(tmp_path: Path) -> None:
    lines = cells(
        read(
            tmp_path,
            row("naive", "resnet", fid=15.001, precision=0.7),
            row("single", "resnet", fid=15.004, precision=0.7),
            row("ppap", "resnet", fid=16.0, precision=0.7),
        )
    )
    assert [line["FID"].startswith("**15.00**") for line in lines] == [True, True, False]
    assert [line["precision"] for line in lines] == ["0.700"] * 3


def test_no_zero_has_a_minus(tmp_path: Path) -> None:
    """What may be of either sign, and is nothing when it is rounded."""
    nothing = {"kid": -4e-5, "kid_low": -4e-5, "kid_high": 2e-4, "gap": -4e-4}
    nothing |= {"gap_low": None, "gap_high": None}
    about = info("methods", {}, ("kid", "gap"))
    other = row("naive", "resnet") | {"gap": 0.1, "gap_low": None, "gap_high": None}
    records = read(tmp_path, about, row("ppap", "resnet") | nothing, other)
    assert "-0.0" not in markdown_table(Table.of(records))
    assert "**0.0000** [0.0000, 0.0002]" in markdown_table(Table.of(records))


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    partly = row("ppap", "resnet", fid=None, fid_low=float("nan"), peak_memory_mib=None)
    records = read(tmp_path, partly, row("single", "resnet"))
    assert csv_rows(records)[1]["fid"] == csv_rows(records)[1]["peak_memory_mib"] == ""
    assert "fid_infinity" not in csv_rows(records)[0]
    single, ppap = cells(records)
    assert ppap["FID"] == ppap["peak MiB"] == "n/a"
    assert not single["FID"].startswith("**"), "a row without a rival is not the best"


def test_headline_names_the_provenance(tmp_path: Path) -> None:
    dirty = PROVENANCE | {"commit": "f" * 40, "dirty": True}
    records = read(tmp_path, row("single", "resnet"), row("ppap", "resnet", provenance=dirty))
    assert headline(records) == (
        "Setting **fashion**, budget **test**; 3,000 samples per row; seeds 0, 1, 2; FID on 1,000 "
        "samples; features of inception-v3; hardware Example CPU (2 cores), 8 GiB; "
        "commit `0123456789ab`, `ffffffffffff` (dirty)."
    )


def test_headline_names_the_accelerator_and_unequal_counts(tmp_path: Path) -> None:
    machine = PROVENANCE["hardware"] | {"accelerator": "Example GPU"}  # type: ignore[operator]
    lent = row("ppap", "vit", samples=500, seeds=[7], provenance=PROVENANCE | {"hardware": machine})
    line = headline(read(tmp_path, row("single", "vit"), lent))
    assert "500 to 3,000 samples per row; seeds 0, 1, 2 or seed 7" in line
    assert "8 GiB / Example CPU (2 cores), 8 GiB, Example GPU" in line


def ranks() -> list[Record]:
    """A sweep with an axis, a reference row and a comparison with it."""
    rows = [
        row("ppap", "resnet", accuracy=0.5 + rank / 100, fid_infinity=9.5 - rank / 10)
        | {
            "sweep": "rank",
            "method": f"rank {rank}",
            "key": f"rank-{rank}",
            "axes": {"rank": rank},
            "reference": rank == 4,
            "adapter": f"LoRA r={rank}",
        }
        for rank in (1, 4, 16)
    ]
    return [info("rank", {"rank": "log"}), *rows, comparison(rows[2], rows[1], 0.12, 0.0004)]


def test_a_sweep_says_which_columns_it_has_and_keeps_its_order(tmp_path: Path) -> None:
    records = read(tmp_path, *ranks())
    lines = cells(records)
    assert [line["method"] for line in lines] == ["rank 1", "rank 4", "rank 16"]
    assert [line["adapter"] for line in lines] == ["LoRA r=1", "LoRA r=4", "LoRA r=16"]
    assert [line["FID∞"] for line in lines] == ["9.400", "9.100", "**7.900**"]
    assert "IS" not in lines[0], "not among the sweep's metrics"
    assert "supervision" not in lines[0], "the same in every row"
    table = csv_rows(records)
    assert [line["axis:rank"] for line in table] == ["1", "4", "16"]


def test_rows_that_axes_alone_tell_apart_show_them(tmp_path: Path) -> None:
    about, *rows, _ = ranks()
    first = read(tmp_path, about, *(record | {"method": "ppap"} for record in rows))
    assert [(line["method"], line["rank"]) for line in cells(first)] == [
        ("ppap", "1"), ("ppap", "4"), ("ppap", "16"),
    ]  # fmt: skip
    (axes, *_) = points_figure(first).axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["ppap, rank 1", "ppap, rank 4", "ppap, rank 16"]
    assert "rank" not in cells(read(tmp_path / "others", *ranks()))[0]


def test_differences_to_the_reference_row_come_with_their_corrected_p(tmp_path: Path) -> None:
    records = read(tmp_path, *ranks())
    first, reference, last = cells(records)
    assert first["Δ accuracy"] == ""
    assert reference["Δ accuracy"] == "reference"
    assert last["Δ accuracy"] == "+0.120 (p < .001)"
    assert last["Δ FID"] == "-0.50 (p = .250)"
    assert float(csv_rows(records)[2]["delta_accuracy_p_corrected"]) == 0.0004
    assert any("Holm" in line for line in legend(records))


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_difference_that_is_not_known_is_none(nothing: float | None, tmp_path: Path) -> None:
    records = ranks()
    (found,) = [record["differences"] for record in records if record["kind"] == "comparison"]
    found["accuracy"] |= {"value": nothing, "p_corrected": nothing}
    found["fid"]["p_corrected"] = nothing
    *_, last = cells(read(tmp_path, *records))
    assert (last["Δ accuracy"], last["Δ FID"]) == ("n/a", "-0.50")


def test_latex_is_escaped_and_has_rules_and_bold(tmp_path: Path) -> None:
    hostile = row("ppap", "resnet", accuracy=0.9) | {"method": r"50% & $x_1$ \input{a}"}
    text = latex(read(tmp_path, hostile, row("single", "resnet")))
    assert r"50\% \& \$x\_1\$ \textbackslash{}input\{a\}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\textbf{0.900} {\scriptsize [0.885, 0.913]}" in text or r"\textbf{0.900}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 2
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert all(len(line.split(" & ")) == len(columns) for line in body if "input" not in line)


def test_rows_without_samples_are_tables_too(tmp_path: Path) -> None:
    slim = {"commit": "a" * 40, "dirty": False, "created": "2024", "wall_seconds": 1.0}
    slim |= {name: PROVENANCE[name] for name in ("packages", "hardware")}
    weighed = {
        **{name: row("ppap", "resnet")[name] for name in ("kind", "setting", "budget")},
        "sweep": "memory", "key": "m", "method": "10 adapters", "predictor": "none",
        "memory_mib": 215.1, "parameters": 40153352, "provenance": slim,
    }  # fmt: skip
    records = read(tmp_path, info("memory", {}, ("parameters", "memory_mib")), weighed)
    assert cells(records) == [
        {"method": "10 adapters", "parameters": "40,153,352", "tensors MiB": "215.1"}
    ]
    assert "FID" not in headline(records)


def test_latex_needs_no_more_than_booktabs(tmp_path: Path) -> None:
    """Of the default encoding: a bare < prints as another sign, a bracket opens an argument."""
    lines = ranks()
    lines[1]["method"] = "[1] r < 4 → 2"
    text = latex(read(tmp_path, *lines))
    assert text.isascii()
    assert r"+0.120 {\scriptsize (p $<$ .001)}" in text
    assert "$-$0.50" in text
    assert "\n{}[1] r $<$ 4 " in text, "not taken for the argument of the line break before"
    for command in ("\\textbf", "\\scriptsize", "\\caption", "\\toprule"):
        assert command in text
    assert text.count("{") == text.count("}")
    assert escaped("Fréchet & 50%") == r"Fr\'echet \& 50\%"


def test_what_was_measured_a_single_time_is_not_marked_best(tmp_path: Path) -> None:
    about = info("throughput", {}, ("images_per_second", "peak_memory_mib", "accuracy"))
    rows = [
        row(method, "resnet", images_per_second=speed, peak_memory_mib=speed + 500)
        | {"sweep": "throughput"}
        for method, speed in (("single", 27.5), ("ppap", 28.9))
    ]
    records = read(tmp_path, about, *rows)
    single, ppap = cells(records)
    assert [line["images/s"] for line in (single, ppap)] == ["27.50", "28.90"]
    assert [line["peak MiB"] for line in (single, ppap)] == ["528", "529"]
    assert ppap["accuracy"].startswith("**"), "what has an interval is marked"
    assert any("measured a single time" in line for line in legend(records))
    assert not any("a single time" in line for line in legend(read(tmp_path, *ranks())))


def test_quality_and_difference_come_first_on_a_page(tmp_path: Path) -> None:
    table = Table.of(read(tmp_path, *ranks()))
    shown = [name for name in table.header if name in table.primary]
    assert shown == ["method", "predictor", "accuracy ↑", "FID ↓", "Δ accuracy", "Δ FID"]
    weighed = row("ppap", "resnet") | {"sweep": "memory"}
    about = info("memory", {}, ("parameters", "disk_mib"))
    assert not Table.of(read(tmp_path, about, weighed)).primary, "all of them"
