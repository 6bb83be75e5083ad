"""Turn pytest-benchmark's JSON into the record that reports show.

``pytest --benchmark-only --benchmark-json=run.json`` and then
``python -m bench.record run.json reports/results/kernels/bench-cpu.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "record"]

KEPT = (
    "images_per_second",
    "gflops",
    "gb_per_second",
    "device_ms_fifths",
    "ratio",
    "reference_ms",
    "matmul_gflops",
    "peak_mib",
    "mib",
    "times_one_model",
)


def record(run: dict[str, Any]) -> dict[str, Any]:
    """Machine and rows; each row with its ratio to its group's reference."""
    machine = run["machine_info"]
    cpu = machine["cpu"].get("brand_raw", machine["machine"])
    name = machine.get("gpu") or f"{cpu}, {machine['threads']} threads"
    ways = [entry for entry in run["benchmarks"] if "way" in entry["extra_info"]]
    reference = {
        entry["group"]: entry["extra_info"].get("device_ms", entry["stats"]["median"] * 1e3) / 1e3
        for entry in ways
        if entry["extra_info"]["way"] == "reference"
    }
    rows = []
    for entry in ways:
        info, median = entry["extra_info"], entry["stats"]["median"]
        # Of kernels the device's own events count, not the clock around them.
        median = info.get("device_ms", median * 1e3) / 1e3
        row = {"group": entry["group"], "way": info["way"], "rounds": entry["stats"]["rounds"]}
        row["median_ms"] = round(median * 1e3, 4)
        row["quartiles_ms"] = [round(entry["stats"][q] * 1e3, 4) for q in ("q1", "q3")]
        row |= {key: info[key] for key in KEPT if key in info}
        if entry["group"] in reference and "ratio" not in info:
            row["ratio"] = round(reference[entry["group"]] / median, 4)
        rows.append(row)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    rows.sort(key=lambda row: groups.index(row["group"]))
    about = {"name": name, "torch": machine["torch"], "python": machine["python_version"]}
    commit = run["commit_info"]
    about |= {"commit": commit["id"], "dirty": commit["dirty"], "date": run["datetime"][:10]}
    return {"machine": about, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read one file, write the other."""
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    found = record(json.loads(options.run.read_text()))
    lines = ",\n".join("  " + json.dumps(row) for row in found["rows"])
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_text(
        f'{{"machine": {json.dumps(found["machine"])},\n "rows": [\n{lines}\n]}}\n'
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
