"""Two results folders matched line by line: rows, curves and claims."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from reports.arms import Arm
from reports.claims import Finding
from reports.comparison import Choice, Comparison, Figure, Name
from reports.metrics import METRICS
from reports.records import NO_PREDICTOR, RECORDS_FILE, Folder, read_folder
from reports.statistics import mean_if_measured

__all__ = ["compare"]

Interval = tuple[float, float, float]
"""A value and its bounds; NaN for what is not known."""


@dataclass(frozen=True)
class Line:
    """A line of one run's tables.

    Attributes:
        figures: by metric.
        choices: the scale, or the verdict, by what it is.
        selected: whether the scale was chosen on samples.
        made: what figures must have in common to be compared, in words.
    """

    figures: Mapping[str, Interval]
    choices: Mapping[str, float | str] = field(default_factory=dict)
    selected: bool = True
    made: Mapping[str, Any] = field(default_factory=dict)


def compare(first: Path, second: Path) -> Comparison:
    """Match the lines of two results folders (or their ``records.jsonl``).

    Rows and curves are matched by sweep, predictor, method, sampler and axes, claims by sweep,
    predictor and name. A curve's figures are its best score and the distance there, means over
    units with their t intervals; a claim's are the difference that decides it.

    Raises:
        RecordError: if either cannot be read.
    """
    folders = [
        read_folder(path.parent if path.name == RECORDS_FILE else path) for path in (first, second)
    ]
    ours, theirs = (dict(_lines(folder)) for folder in folders)
    pairs = [(name, ours[name], theirs[name]) for name in ours if name in theirs]
    return Comparison(
        (str(first), str(second)),
        (" / ".join(folders[0].machines), " / ".join(folders[1].machines)),
        tuple(name for name, _, _ in pairs),
        tuple(figure for pair in pairs for figure in _figures(*pair)),
        tuple(choice for pair in pairs for choice in _choices(*pair)),
        (
            tuple(name.title for name in ours if name not in theirs),
            tuple(name.title for name in theirs if name not in ours),
        ),
        tuple(_warnings(folders, [(a, b) for _, a, b in pairs])),
    )


def _lines(folder: Folder) -> Iterator[tuple[Name, Line]]:
    """In the order of the tables."""
    for records in folder.sweeps:
        for _, row in records.rows.iterrows():
            sampler = "" if pd.isna(row["sampler"]) else row["sampler"]
            named = (row["predictor"], row["method"], sampler, _json(row["axes"]))
            yield Name("row", records.sweep, *named), _row(row, records.raw[row["key"]])
        for arm in records.arms:
            named = (arm.predictor, arm.method, arm.sampler, _json(arm.record.get("axes", {})))
            yield Name("curve", records.sweep, *named), _curve(arm)
        for finding in records.findings:
            claim = finding.claim
            named = (claim.predictor, claim.name, claim.sampler or "", _json({}))
            yield Name("claim", records.sweep, *named), _claim(finding)


def _row(row: pd.Series, record: Mapping[str, Any]) -> Line:
    ends = ("", "_low", "_high")
    figures = {m: tuple(float(row[m + end]) for end in ends) for m in METRICS}
    scale = {} if pd.isna(row["scale"]) else {"scale": float(row["scale"])}
    selected = row["predictor"] != NO_PREDICTOR and _is_selected(record)
    made = {
        "sample counts of FID differ: do not compare FIDs": row["samples_per_fid"],
        "extractors of FID differ: do not compare FIDs": row["feature_extractor"],
    }
    return Line(figures, scale, selected, made)  # type: ignore[arg-type]


def _is_selected(record: Mapping[str, Any]) -> bool:
    """Whether a row's scale is another cell's: the choice on the selection seeds."""
    configuration = record["provenance"].get("configuration", {})
    samples = configuration.get("samples") or {}
    steerings = samples.get("steerings") or [samples]
    return any(isinstance(steering.get("scale"), dict) for steering in steerings)


def _curve(arm: Arm) -> Line:
    figures: dict[str, Interval] = {}
    for name, column in (("best_score", "score"), ("distance_there", "pixel_fid")):
        found = mean_if_measured(arm.best_points[column])
        figures[name] = (found.value, found.low, found.high)
    made = {
        "sample counts of curves differ: do not compare distances": tuple(
            sorted(set(arm.points["samples"]))
        ),
        "scores of curves differ: do not compare them": arm.metric,
    }
    return Line(figures, {"scale": arm.best_scale()}, True, made)


def _claim(finding: Finding) -> Line:
    test = finding.test
    figures = {"difference": (test.value, test.low, test.high)} if test else {}
    made = {"claims compare other quantities": (finding.claim.quantity, finding.unit)}
    return Line(figures, {"verdict": finding.verdict}, True, made)


def _figures(name: Name, ours: Line, theirs: Line) -> Iterator[Figure]:
    for metric, first in ours.figures.items():
        second = theirs.figures.get(metric, (math.nan,) * 3)
        if not (math.isnan(first[0]) or math.isnan(second[0])):
            yield Figure(name, metric, *first, *second)


def _choices(name: Name, ours: Line, theirs: Line) -> Iterator[Choice]:
    for what, first in ours.choices.items():
        if what in theirs.choices:
            counted = ours.selected or theirs.selected
            yield Choice(name, what, first, theirs.choices[what], counted)


def _warnings(folders: list[Folder], pairs: list[tuple[Line, Line]]) -> Iterator[str]:
    a, b = folders
    for fixed in ("setting", "budget"):
        if getattr(a, fixed) != getattr(b, fixed):
            yield f"{fixed}s differ: {getattr(a, fixed)} and {getattr(b, fixed)}"
    for warning in dict.fromkeys(warning for ours, _ in pairs for warning in ours.made):
        values = [
            (ours.made[warning], theirs.made[warning]) for ours, theirs in pairs
            if warning in ours.made
        ]  # fmt: skip
        if any(x != y and not (_unknown(x) or _unknown(y)) for x, y in values):
            yield warning


def _unknown(value: Any) -> bool:
    return not isinstance(value, tuple) and bool(pd.isna(value))


def _json(axes: Mapping[str, Any]) -> str:
    return json.dumps(axes, sort_keys=True)
