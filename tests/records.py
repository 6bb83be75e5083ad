"""The committed records, as tests of what the documents state look them up."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "CLAIMS",
    "LONG",
    "PEERS",
    "PEERS_LONG",
    "PEERS_ON_SCENES",
    "RESULTS",
    "SCENES",
    "TUNING",
    "benchmark",
    "benchmark_row",
    "best_point",
    "claim_of",
    "records_of",
    "row_of",
    "rows_of",
]

CLAIMS = "fashion-large-full+curve_samples=200"
PEERS = "fashion-large-full+curve_samples=25+selection_samples=32+timed_images=16+trials=8"
SCENES = "scenes-large-full+curve_samples=100+synthetic=2000"
LONG = SCENES.replace("large", "long")
PEERS_ON_SCENES = PEERS.replace("fashion", "scenes").replace("+timed", "+synthetic=2000+timed")
PEERS_LONG = PEERS_ON_SCENES.replace("large", "long")
TUNING = "fashion-large-full+seeds=1"
RESULTS = Path(__file__).parents[1] / "reports" / "results"


@cache
def rows_of(folder: str, table: str) -> list[dict[str, str]]:
    """The rows of a table."""
    with (RESULTS / folder / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


def records_of(folder: str) -> list[dict[str, Any]]:
    """Its records, as they were written."""
    lines = (RESULTS / folder / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def row_of(folder: str, table: str, method: str, predictor: str) -> dict[str, str]:
    """The row of a method, of its own predictor or of none; of several samplers, DDIM-25's."""
    named = [
        row
        for row in rows_of(folder, table)
        if row["method"] == method
        if row["predictor"] in (predictor, "none")
    ]
    (found,) = named if len(named) == 1 else (r for r in named if r["sampler"] == "ddim25")
    return found


def best_point(
    folder: str,
    method: str,
    predictor: str,
    sweep: str = "claims",
    best: Callable[..., dict[str, str]] = max,
) -> dict[str, str]:
    """The point of a method's curve that has the best score: the highest, of errors ``min``."""
    points = [
        row
        for row in rows_of(folder, f"{sweep}-curves")
        if (row["method"], row["predictor"]) == (method, predictor)
    ]
    return best(points, key=lambda row: float(row["score"]))


def claim_of(folder: str, sweep: str, name: str, predictor: str) -> dict[str, str]:
    """A claim of a sweep, its contrast and verdict."""
    (found,) = (
        row
        for row in rows_of(folder, f"{sweep}-contrasts")
        if (row["claim"], row["predictor"]) == (name, predictor)
    )
    return found


@cache
def benchmark(name: str) -> Any:
    """A record of ``results/kernels``."""
    return json.loads((RESULTS / "kernels" / f"{name}.json").read_text())


def benchmark_row(name: str, group: str, way: str) -> dict[str, Any]:
    """Its row of a way, in the one group that begins so."""
    rows = benchmark(name)["rows"]
    (found,) = (row for row in rows if row["way"] == way and row["group"].startswith(group))
    return dict(found)
