"""Turn pytest-benchmark's JSON into the record that reports show.

``pytest --benchmark-only --benchmark-json=run.json`` and then
``python -m bench.record run.json reports/results/kernels/bench-cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.paired import UNSTEADY

__all__ = ["main", "record", "steadiness", "write_record"]

KEPT = (
    "rounds",
    "ms",
    "reference_ms",
    "ratio",
    "ratio_interval",
    "spread",
    "images_per_second",
    "gflops",
    "of_ceiling",
    "gb_per_second",
    "convolution_gflops",
    "product_gflops",
    "peak_mib",
    "mib",
    "times_one_model",
)


def record(run: dict[str, Any]) -> dict[str, Any]:
    """Machine and rows; a row's milliseconds and ratio are of the same interleaved rounds.

    The machine's ceilings are medians over rows, and it counts the rows whose rounds spread by
    more than :data:`~bench.paired.UNSTEADY`.
    """
    ways = [entry for entry in run["benchmarks"] if "way" in entry["extra_info"]]
    rows = []
    for entry in ways:
        info = entry["extra_info"]
        row = {"group": entry["group"], "way": info["way"]}
        rows.append(row | {key: info[key] for key in KEPT if key in info})
    groups = list(dict.fromkeys(row["group"] for row in rows))
    rows.sort(key=lambda row: groups.index(row["group"]))
    machine, commit = run["machine_info"], run["commit_info"]
    threads, cpu = machine["threads"], machine["cpu_model"]
    about = {
        "name": machine.get("gpu") or f"{cpu}, {threads} threads",
        "cpu": cpu,
        "instruction_set": machine["instruction_set"],
        "threads": threads,
        "torch": machine["torch"],
        "python": machine["python_version"],
        "commit": commit["id"],
        "dirty": commit["dirty"],
        "date": run["datetime"][:10],
    }
    for key in ("convolution_gflops", "product_gflops"):
        found = [row.pop(key) for row in rows if key in row]
        if found:
            about[key] = round(statistics.median(found), 1)
    if any("spread" in row for row in rows):
        about |= steadiness(rows)
    return {"machine": about, "rows": rows}


def steadiness(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a record says of how evenly its rounds went; rows without a spread do not count."""
    spreads = [row["spread"] for row in rows if "spread" in row]
    return {
        "unsteady_rows": sum(spread > UNSTEADY for spread in spreads),
        "unsteady_above": UNSTEADY,
        "largest_spread": max(spreads, default=0.0),
    }


def write_record(found: Mapping[str, Any], target: Path) -> None:
    """Write a record as JSON, a row to a line."""
    rows = ",\n".join("  " + json.dumps(row) for row in found["rows"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f'{{"machine": {json.dumps(found["machine"])},\n "rows": [\n{rows}\n]}}\n')


def main(arguments: Sequence[str] | None = None) -> int:
    """Read one file, write the other."""
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    write_record(record(json.loads(options.run.read_text())), options.target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
