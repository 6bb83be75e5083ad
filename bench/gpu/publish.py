"""What one run found, in the form that reports show: ``python -m bench.gpu.publish FOLDER``.

Writes ``bench-kernels-GPU.json`` and ``bench-GPU.json`` beside the CPU's records; of a run of some
stages alone, what they gave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppap_kernels.dispatch import slug

from bench.record import steadiness, write_record

__all__ = ["end_to_end_record", "kernels_record", "main"]

TARGET = Path(__file__).parents[2] / "reports" / "results" / "kernels"
IN_GRAPH = ", in a CUDA graph"
EAGER = "torch eager"


def kernels_record(found: Mapping[str, Any], checks: Mapping[str, Any]) -> dict[str, Any]:
    """Machine and rows: each way as an ordinary call, and in a CUDA graph where it was captured.

    Args:
        found: ``kernels.json``.
        checks: ``correctness.json``, whose misses are told with the machine.
    """
    rows: list[dict[str, Any]] = []
    graphs = {
        _group(row): row["graph_us"]
        for row in found["rows"]
        if row["way"] == EAGER and row.get("graph_us")
    }
    for row in found["rows"]:
        group = _group(row)
        called = {"ms": row["us"] / 1e3, "reference_ms": row["eager_us"] / 1e3}
        ratios = {key: row[key] for key in ("ratio", "ratio_interval", "peak_mib") if key in row}
        rows.append({"group": group, "way": row["way"]} | _rounded(called) | ratios)
        if row.get("graph_us"):
            captured = {"ms": row["graph_us"] / 1e3}
            if group in graphs:
                captured["reference_ms"] = graphs[group] / 1e3
                captured["ratio"] = graphs[group] / row["graph_us"]
            rows.append({"group": group, "way": row["way"] + IN_GRAPH} | _rounded(captured))
    misses = [_miss(row) for row in checks["rows"] if not row["ok"]]
    about = _about(found["machine"], rows, found["left_out"])
    about["checks"], about["misses"] = len(checks["rows"]), misses
    return {"machine": about, "rows": rows}


def end_to_end_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """Machine and rows of guided steps, whole calls and training steps, and what failed.

    With the machine go the seconds of equal calls, one after another in a process, and how far the
    steps and images of each way are from the reference's.
    """
    kept = (
        "rounds", "ms", "reference_ms", "ratio", "ratio_interval", "spread", "images_per_second"
    )  # fmt: skip
    rows = []
    for row in found["rows"]:
        if "way" in row:
            group = f"{row['what']}, {row['predictor']}, {row['mode']}"
            measured = {key: row[key] for key in (*kept, "peak_mib") if key in row}
            rows.append({"group": group, "way": row["way"]} | measured)
    about = _about(found["machine"], rows, found["left_out"])
    if calls := [row["seconds"] for row in found["rows"] if row["what"] == "repeated calls"]:
        about["calls_s"], about["plain_call_s"] = calls, found["plain_call_s"]
    about["apart"] = {
        f"{row['predictor']}, {row['mode']}": {
            way: {what: of[what] for what in ("step", "images")} for way, of in row["ways"].items()
        }
        for row in found["rows"]
        if row["what"] == "agreement with the reference"
    }
    about["failures"] = [
        f"{error['what']}: {error['error']}" for error in found["errors"] if "what" in error
    ]
    return {"machine": about, "rows": rows}


def _group(row: Mapping[str, Any]) -> str:
    return f"{row['operation']} {row['shape']}, {row['pass']}, {row['mode']}"


def _miss(row: Mapping[str, Any]) -> str:
    about = f"{row['operation']} {row['shape']} {row['mode']} {row['backend']} {row['pass']}"
    if "failed" in row:
        return f"{about}: {row['failed'].split(':')[0]}"
    return f"{about}: {row['worst']:.1e}, limit {row['limit']:.0e}"


def _about(
    machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], left_out: Sequence[str]
) -> dict[str, Any]:
    left = {"left_out": len(left_out)}
    return dict(machine) | {"name": machine["gpu"]} | steadiness(rows) | left


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 5) for key, value in row.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a run's folder, write the records."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.publish", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args(arguments)
    read = {
        name: json.loads(path.read_text())
        for name in ("kernels", "correctness", "end-to-end")
        if (path := options.folder / f"{name}.json").is_file()
    }
    records = {}
    if {"kernels", "correctness"} <= read.keys():
        record = kernels_record(read["kernels"], read["correctness"])
        records[f"bench-kernels-{slug(record['machine']['gpu'])}.json"] = record
    if "end-to-end" in read:
        record = end_to_end_record(read["end-to-end"])
        records[f"bench-{slug(record['machine']['gpu'])}.json"] = record
    if not records:
        raise FileNotFoundError(
            f"{options.folder} has neither end-to-end.json nor kernels.json with correctness.json; "
            "name the folder that python -m bench.gpu was given by --out"
        )
    for name, record in records.items():
        write_record(record, options.target / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
