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


def timing(way: str, median: float, **info: Any) -> dict[str, Any]:
    stats = {"median": median, "q1": median, "q3": median, "rounds": 7}
    return {"group": "a step", "stats": stats, "extra_info": {"way": way} | info}


RUN = {
    "machine_info": {
        "cpu": {"brand_raw": "A processor"}, "machine": "x86_64", "threads": 2,
        "torch": "2.14.1", "python_version": "3.11", "node": "somebody's",
    },
    "commit_info": {"id": "abc", "dirty": False},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        timing("reference", 0.06),
        timing("ours", 0.02, images_per_second=3200.0, pages="unknown"),
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
    assert found["machine"]["name"] == "A processor, 2 threads"
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


def test_markdown_and_page_show_them(folder: Path, tmp_path: Path) -> None:
    written = build_kernels(folder)
    assert [path.name for path in written] == ["bench-cpu.md", "audit.md"]
    assert "| a step | ours | 20.00 | 3200.0 |" in written[0].read_text()
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
