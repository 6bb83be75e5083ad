"""Two runs' tables side by side: which figures moved by more than chance, which choices flipped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports.metrics import METRICS
from reports.records import NO_PREDICTOR, RECORDS_FILE, Folder, read_folder

__all__ = ["Comparison", "Figure", "Scale", "compare"]

MARK = "**"
"""Around a figure that is outside the other's interval, and a scale that flipped."""


@dataclass(frozen=True)
class Figure:
    """A figure that both runs have.

    Attributes:
        sweep: of the row.
        predictor: of the row.
        method: of the row.
        sampler: of the row; empty if it has none.
        axes: of the row, as JSON.
        metric: as in the records.
        first: its value in the first, with its interval; NaN for bounds that are not recorded.
        second: likewise.
        first_outside: whether the first is outside the second's interval.
        second_outside: whether the second is outside the first's.
        intervals_apart: whether the intervals are known and do not overlap.
    """

    sweep: str
    predictor: str
    method: str
    sampler: str
    axes: str
    metric: str
    first: float
    first_low: float
    first_high: float
    second: float
    second_low: float
    second_high: float
    first_outside: bool
    second_outside: bool
    intervals_apart: bool

    @property
    def change(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def compared(self) -> bool:
        """Whether either has an interval for the other to be in."""
        bounds = (self.first_low, self.second_low)
        return not all(map(math.isnan, bounds))

    @property
    def outside(self) -> bool:
        """Whether either is outside the other's interval."""
        return self.first_outside or self.second_outside

    @property
    def row(self) -> tuple[str, str, str, str]:
        """What tells its row within the sweep."""
        return (self.predictor, self.method, self.sampler, self.axes)

    def text(self) -> str:
        """Both values; those outside the other's interval in bold."""
        spec = METRICS[self.metric].spec
        shown = [format(value, spec) for value in (self.first, self.second)]
        if self.first == self.second:
            return shown[0]
        outside = (self.first_outside, self.second_outside)
        marked = [f"{MARK * out}{t}{MARK * out}" for t, out in zip(shown, outside, strict=True)]
        return " → ".join(marked)


@dataclass(frozen=True)
class Scale:
    """The guidance scale of a row in both runs.

    Attributes:
        sweep: of the row.
        row: what tells it, as :attr:`Figure.row`.
        first: in the first run.
        second: in the second.
        selected: whether it was chosen on the selection seeds, in either.
    """

    sweep: str
    row: tuple[str, str, str, str]
    first: float
    second: float
    selected: bool

    @property
    def flipped(self) -> bool:
        """Whether the two runs have different ones."""
        return self.first != self.second

    def text(self) -> str:
        """One scale, or both in bold."""
        if self.flipped:
            return f"{MARK}{self.first:g} → {self.second:g}{MARK}"
        return f"{self.first:g}"


@dataclass(frozen=True)
class Comparison:
    """What two results folders have in common and what not.

    Attributes:
        names: of the two.
        machines: what each was seen on.
        shared: how many rows are in both.
        figures: that both have.
        scales: of the rows that have one in both.
        alone: titles of the rows that only the first, only the second has.
        warnings: why figures may differ without a cause in the method.
    """

    names: tuple[str, str]
    machines: tuple[str, str]
    shared: int
    figures: tuple[Figure, ...]
    scales: tuple[Scale, ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line: how much was compared, and how much of it moved."""
        if not self.shared:
            return "No row is in both."
        compared = [figure for figure in self.figures if figure.compared]
        selected = [scale for scale in self.scales if scale.selected]
        return (
            f"{self.shared} rows in both: {len(compared)} figures with intervals compared, "
            f"{sum(f.outside for f in compared)} outside the other's interval "
            f"({sum(f.intervals_apart for f in compared)} with intervals apart); "
            f"{len(selected)} selected guidance scales compared, "
            f"{sum(scale.flipped for scale in selected)} flipped; "
            f"{sum(figure.change == 0 for figure in self.figures)} of all {len(self.figures)} "
            "figures are equal."
        )

    def markdown(self) -> str:
        """A heading, what each was seen on, a table for each sweep, and the summary."""
        parts = [f"# {self.names[0]} → {self.names[1]}"]
        seen = zip(("First", "Second"), self.machines, strict=True)
        parts.append("\n".join(f"- {which} seen on {where or 'nothing'}" for which, where in seen))
        if self.warnings:
            parts.append(f"Careful: {'; '.join(self.warnings)}.")
        parts += list(self._tables())
        for name, titles in zip(self.names, self.alone, strict=True):
            if titles:
                parts.append(f"Only in {name}: {'; '.join(titles)}.")
        return "\n\n".join([*parts, self.summary]) + "\n"

    def _tables(self) -> Iterator[str]:
        """Both values of every figure that has an interval; of all, where a sweep has none."""
        if any(figure.outside for figure in self.figures) or any(s.flipped for s in self.scales):
            yield "Bold: outside the interval of the other run; of scales, flipped."
        for sweep in dict.fromkeys(figure.sweep for figure in self.figures):
            every = [figure for figure in self.figures if figure.sweep == sweep]
            own = [figure for figure in every if figure.compared] or every
            metrics = [name for name in METRICS if any(f.metric == name for f in own)]
            found = {(f.row, f.metric): f.text() for f in own}
            scales = {scale.row: scale.text() for scale in self.scales if scale.sweep == sweep}
            lines = []
            for row in dict.fromkeys(figure.row for figure in own):
                predictor, method, sampler, _ = row
                title = ", ".join(filter(None, (method, sampler)))
                named = {"predictor": predictor, "method": title}
                shown = {METRICS[m].title: found.get((row, m), "") for m in metrics}
                line = named | shown | ({"scale": scales.get(row, "")} if scales else {})
                lines.append({name: text.replace("|", "\\|") for name, text in line.items()})
            frame = pd.DataFrame(lines)
            align = ["left"] * 2 + ["right"] * (len(frame.columns) - 2)
            table = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
            yield f"## {sweep}\n\n{table}"

    def csv(self) -> str:
        """All figures, six significant digits, empty where nothing is recorded."""
        lines = [asdict(figure) | {"change": figure.change} for figure in self.figures]
        columns = [*Figure.__annotations__, "change"]
        frame = pd.DataFrame(lines, columns=columns)
        return str(frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def compare(first: Path, second: Path) -> Comparison:
    """Match the rows of two results folders (or their ``records.jsonl``).

    Rows are matched by sweep, predictor, method, sampler and axes.

    Raises:
        RecordError: if either cannot be read.
    """
    folders = [
        read_folder(path.parent if path.name == RECORDS_FILE else path) for path in (first, second)
    ]
    ours, theirs = (_rows(folder) for folder in folders)
    shared = [name for name in ours if name in theirs]
    pairs = [(name, ours[name], theirs[name]) for name in shared]
    return Comparison(
        (str(first), str(second)),
        (" / ".join(folders[0].machines), " / ".join(folders[1].machines)),
        len(shared),
        tuple(figure for pair in pairs for figure in _figures(*pair)),
        tuple(scale for pair in pairs for scale in _scales(*pair)),
        (
            tuple(_title(name) for name in ours if name not in theirs),
            tuple(_title(name) for name in theirs if name not in ours),
        ),
        tuple(_warnings(folders, pairs)),
    )


def _rows(folder: Folder) -> dict[str, pd.Series]:
    """By name, in the order of the tables; each knows its record."""
    found: dict[str, pd.Series] = {}
    for records in folder.sweeps:
        for _, row in records.rows.iterrows():
            name = [records.sweep, row["predictor"], row["method"], row["sampler"] or ""]
            row["selected"] = row["predictor"] != NO_PREDICTOR and _is_selected(
                records.raw[row["key"]]
            )
            found[json.dumps([*name, row["axes"]], sort_keys=True)] = row
    return found


def _is_selected(record: dict[str, Any]) -> bool:
    """Whether a row's scale is another cell's: the choice on the selection seeds."""
    configuration = record["provenance"].get("configuration", {})
    samples = configuration.get("samples") or {}
    steerings = samples.get("steerings") or [samples]
    return any(isinstance(steering.get("scale"), dict) for steering in steerings)


def _figures(name: str, ours: pd.Series, theirs: pd.Series) -> Iterator[Figure]:
    sweep, predictor, method, sampler, axes = json.loads(name)
    where = (sweep, predictor, method, sampler, json.dumps(axes, sort_keys=True))
    for metric in METRICS:
        a, a_low, a_high = (float(ours[metric + end]) for end in ("", "_low", "_high"))
        b, b_low, b_high = (float(theirs[metric + end]) for end in ("", "_low", "_high"))
        if math.isnan(a) or math.isnan(b):
            continue
        # No comparison is true where a bound is NaN.
        outside = (a < b_low or a > b_high, b < a_low or b > a_high)
        apart = a_low > b_high or b_low > a_high
        yield Figure(*where, metric, a, a_low, a_high, b, b_low, b_high, *outside, apart)


def _scales(name: str, ours: pd.Series, theirs: pd.Series) -> Iterator[Scale]:
    sweep, predictor, method, sampler, axes = json.loads(name)
    row = (predictor, method, sampler, json.dumps(axes, sort_keys=True))
    if not (pd.isna(ours["scale"]) or pd.isna(theirs["scale"])):
        selected = ours["selected"] or theirs["selected"]
        yield Scale(sweep, row, float(ours["scale"]), float(theirs["scale"]), selected)


def _warnings(
    folders: list[Folder], pairs: list[tuple[str, pd.Series, pd.Series]]
) -> Iterator[str]:
    a, b = folders
    for field in ("setting", "budget"):
        if getattr(a, field) != getattr(b, field):
            yield f"{field}s differ: {getattr(a, field)} and {getattr(b, field)}"
    for field, what in (("samples_per_fid", "sample counts"), ("feature_extractor", "extractors")):
        values = [(ours[field], theirs[field]) for _, ours, theirs in pairs]
        if any(x != y and not (pd.isna(x) or pd.isna(y)) for x, y in values):
            yield f"{what} of FID differ: do not compare FIDs"


def _title(name: str) -> str:
    sweep, predictor, method, sampler, _ = json.loads(name)
    return " / ".join(part for part in (sweep, predictor, method, sampler) if part)
