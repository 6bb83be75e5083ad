"""Speed and resources on the page: marked as measured or as predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.record import record
from reports.build import build_kernels
from reports.drawings import Report
from reports.kernels import sheets
from reports.page import page
from reports.schema import RecordError
from tests.reports.conftest import write_folder

from .test_compare import row

COMPILED = {
    "kernel": "lora_linear forward", "shape": "m=64", "type": "fp16", "tiles": "16x64 w4 s3",
    "target": "sm_90", "gpu": "H100", "registers": 96, "spills": 0, "shared_bytes": 12288,
    "occupancy": 0.25, "tensor_core": "HGMMA", "bytes": 1200, "bytes_minimum": 1000,
    "bytes_unfused": 3000, "flops": 0, "flops_needed": 0, "predicted_us": 1.5,
    "predicted_unfused_us": 4.0,
}  # fmt: skip


def timing(way: str, ms: float, spread: float = 0.02, **info: Any) -> dict[str, Any]:
    ratio = 60.0 / ms
    paired = {
        "way": way, "rounds": 7, "ms": ms, "reference_ms": 60.0, "ratio": ratio,
        "ratio_interval": [ratio - 0.25, ratio + 0.25], "spread": spread,
        "convolution_gflops": 300.0 + ms, "product_gflops": 200.0,
    }  # fmt: skip
    return {"group": "a step", "stats": {"median": 0.0}, "extra_info": paired | info}


RUN = {
    "machine_info": {
        "cpu_model": "A processor", "instruction_set": "AVX512, oneDNN AVX512_CORE", "threads": 2,
        "torch": "2.14.1", "python_version": "3.11", "node": "somebody's",
    },
    "commit_info": {"id": "abc", "dirty": False},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        timing("reference", 60.0),
        timing("ours", 20.0, images_per_second=3200.0, of_ceiling=0.5, pages="unknown"),
        {"group": "other", "stats": {}, "extra_info": {}},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audit.json").write_text(json.dumps([COMPILED]))
    (tmp_path / "bench-cpu.json").write_text(json.dumps(record(RUN)))
    return tmp_path


def test_a_record_keeps_ratios_and_leaves_out_whose_machine_it_was() -> None:
    found = record(RUN)
    assert [line["ratio"] for line in found["rows"]] == [1.0, 3.0]
    about = found["machine"]
    assert about["name"] == "A processor, 2 threads"
    assert (about["cpu"], about["threads"]) == ("A processor", 2)
    assert about["instruction_set"] == "AVX512, oneDNN AVX512_CORE"
    assert (about["convolution_gflops"], about["product_gflops"]) == (340.0, 200.0)
    assert about["unsteady_rows"] == 0
    assert "somebody" not in json.dumps(found)
    assert "pages" not in found["rows"][1]


def test_tables_say_what_is_measured_and_what_is_predicted(folder: Path) -> None:
    measured, compiled = sheets(folder)
    assert measured.text.startswith("Measured on A processor")
    assert "nothing here was measured" in compiled.text
    assert all("predicted" in name for name in compiled.header if "µs" in name)
    shown = dict(zip(compiled.header, (text for text, _ in compiled.lines[0]), strict=True))
    assert shown["bytes / minimum"] == "1.20"
    assert shown["unfused / bytes"] == "2.50"
    assert shown["FLOP / needed"] == ""
    assert shown["occupancy"] == "25%"


def test_an_unsteady_machine_is_named_at_the_top(tmp_path: Path) -> None:
    shaky = [timing("reference", 60.0), timing("ours", 20.0, spread=0.41)]
    found = record({**RUN, "benchmarks": shaky})
    assert found["machine"]["unsteady_rows"] == 1
    (tmp_path / "bench-cpu.json").write_text(json.dumps(found))
    (sheet,) = sheets(tmp_path)
    first = sheet.text.splitlines()[0]
    assert first == (
        "**Unsteady machine**: the rounds of 1 of 2 rows spread by more than 15% from quartile to "
        "quartile, by up to 41%."
    )


def test_a_record_from_before_rounds_were_interleaved_says_so(tmp_path: Path) -> None:
    old = {"group": "a step", "way": "ours", "median_ms": 20.0, "ratio": 1.02}
    machine = {"name": "A processor, 2 threads", "torch": "2.14.1"}
    (tmp_path / "bench-cpu.json").write_text(json.dumps({"machine": machine, "rows": [old]}))
    (sheet,) = sheets(tmp_path)
    assert "Recorded before rounds were interleaved" in sheet.text
    assert "| a step | ours | 20.00 |  | 1.02 |" in sheet.markdown()


def test_markdown_and_page_show_them(folder: Path, tmp_path: Path) -> None:
    written = build_kernels(folder)
    assert [path.name for path in written] == ["bench-cpu.md", "audit.md"]
    assert "| a step | ours | 20.00 | 60.00 | 3.00 | 2.75 to 3.25 | 3200.0 |  | 50% |" in (
        written[0].read_text()
    )
    records = Report.read(write_folder(tmp_path / "results", [row("ppap", "vit")]))
    html = page([records], sheets(folder))
    assert '<h2 id="audit">' in html
    assert '<td data-value="3.0">3.00</td>' in html


def test_nothing_recorded_is_no_table(tmp_path: Path) -> None:
    assert sheets(tmp_path) == []


@pytest.mark.parametrize("content", ["[{}]", "not JSON"])
def test_a_malformed_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(RecordError, match=r"audit\.json"):
        sheets(tmp_path)
