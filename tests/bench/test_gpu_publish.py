"""A GPU's run as the records that reports show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu.publish import end_to_end_record, kernels_record, main
from reports.kernels import sheets

MACHINE = {
    "cpu": "A CPU", "instruction_set": "AVX2", "python": "3.12", "torch": "2.11", "gpu": "GPU 9",
    "date": "2026-11-26",
}  # fmt: skip
SHAPE = {"operation": "lora_linear", "shape": "8x8", "pass": "forward", "mode": "tf32"}
KERNELS = {
    "machine": MACHINE,
    "rows": [
        SHAPE | {"way": "ours", "us": 400.0, "eager_us": 100.0, "ratio": 0.25, "graph_us": 40.0},
        SHAPE | {"way": "torch eager", "us": 100.0, "eager_us": 100.0, "graph_us": 80.0},
        SHAPE | {"way": "a loop", "us": 900.0, "eager_us": 100.0, "graph_us": None},
    ],
    "errors": [],
    "left_out": ["another shape"],
}
CHECK = SHAPE | {"backend": "triton", "worst": 1e-7, "limit": 2e-5, "ok": True}
CHECKS = {"rows": [CHECK, CHECK | {"worst": 5e-5, "ok": False}]}
STEP = {"what": "guided step", "predictor": "vit", "mode": "tf32", "way": "plain"}
END_TO_END = {
    "machine": MACHINE,
    "rows": [
        STEP | {"ms": 2.0, "reference_ms": 3.0, "ratio": 1.5, "spread": 0.2},
        {
            "what": "agreement with the reference",
            "predictor": "vit",
            "mode": "tf32",
            "ways": {"plain": {"step": {"median": 0.1}, "images": {"median": 0.2}, "first": 3.0}},
        },
        {"what": "repeated calls", "seconds": 4.25},
        {"what": "repeated calls", "seconds": 0.5},
    ],
    "plain_call_s": 0.75,
    "errors": [{"what": "step, fast path", "error": "AcceleratorError", "traceback": "/a/path"}],
    "left_out": [],
}


def test_a_call_and_its_replay_are_rows_of_their_own() -> None:
    rows = {row["way"]: row for row in kernels_record(KERNELS, CHECKS)["rows"]}
    assert list(rows) == [
        "ours", "ours, in a CUDA graph", "torch eager", "torch eager, in a CUDA graph", "a loop"
    ]  # fmt: skip
    assert (rows["ours"]["ms"], rows["ours"]["ratio"]) == (0.4, 0.25)
    assert rows["ours, in a CUDA graph"]["ratio"] == 2.0


def test_failures_and_misses_are_told_without_paths() -> None:
    about = kernels_record(KERNELS, CHECKS)["machine"]
    assert about["misses"] == ["lora_linear 8x8 tf32 triton forward: 5.0e-05, limit 2e-05"]
    broken = SHAPE | {"backend": "triton", "ok": False, "failed": "OutOfResources: in /a/path"}
    about = kernels_record(KERNELS, {"rows": [CHECK, broken]})["machine"]
    assert about["misses"] == ["lora_linear 8x8 tf32 triton forward: OutOfResources"]
    record = end_to_end_record(END_TO_END)
    assert record["machine"]["failures"] == ["step, fast path: AcceleratorError"]
    assert record["machine"]["unsteady_rows"] == 1
    assert len(record["rows"]) == 1
    assert "/a/path" not in json.dumps(record)


def test_equal_calls_and_how_far_ways_are_apart_go_with_the_machine(tmp_path: Path) -> None:
    about = end_to_end_record(END_TO_END)["machine"]
    assert (about["calls_s"], about["plain_call_s"]) == ([4.25, 0.5], 0.75)
    plain = {"step": {"median": 0.1}, "images": {"median": 0.2}}
    assert about["apart"] == {"vit, tf32": {"plain": plain}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "end-to-end.json").write_text(json.dumps(END_TO_END))
    assert main([str(tmp_path / "run"), "--target", str(tmp_path)]) == 0
    (sheet,) = sheets(tmp_path)
    assert "took 4.25, 0.50 s, and 0.75 s on the plain path" in sheet.text


def test_what_is_published_is_shown(tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "kernels"
    folder.mkdir()
    target.mkdir()
    for name, found in (("kernels", KERNELS), ("correctness", CHECKS), ("end-to-end", END_TO_END)):
        (folder / f"{name}.json").write_text(json.dumps(found))
    assert main([str(folder), "--target", str(target)]) == 0
    speed, kernels = sheets(target)
    assert speed.title == "Speed on GPU 9"
    assert "Failed: step, fast path: AcceleratorError." in speed.text
    assert kernels.title == "Kernels, one by one, on GPU 9"
    assert "Of 2 checks against float64, 1 missed" in kernels.text
    assert "For 1 measurements no time was left." in kernels.text
    assert "| 0.04 |" in kernels.markdown()


def test_of_some_stages_what_they_gave_is_published(tmp_path: Path) -> None:
    for name, found in (("correctness", CHECKS), ("end-to-end", END_TO_END)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    target = tmp_path / "kernels"
    assert main([str(tmp_path), "--target", str(target)]) == 0
    assert [path.name for path in target.iterdir()] == ["bench-gpu-9.json"]


def test_a_folder_of_something_else_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--out"):
        main([str(tmp_path), "--target", str(tmp_path)])
