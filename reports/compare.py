"""Two sets of records, row by row: what changed, and whether intervals still overlap."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from reports.metrics import METRICS
from reports.records import RECORDS_FILE, Folder, read_folder

__all__ = ["Change", "Comparison", "compare"]


@dataclass(frozen=True)
class Change:
    """A figure that both sides have, and that differs.

    Attributes:
        sweep: of the row.
        predictor: of the row.
        method: of the row.
        sampler: of the row; empty if it has none.
        axes: of the row, as JSON.
        metric: as in the records.
        first: its value in the first, with its interval; NaN for bounds that are not recorded.
        second: likewise.
        change: second minus first.
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
    change: float
    intervals_apart: bool


@dataclass(frozen=True)
class Comparison:
    """What two results folders have in common and what not.

    Attributes:
        names: of the two.
        shared: how many rows are in both.
        equal: how many of their figures are equal.
        changes: the others.
        alone: titles of the rows that only the first, only the second has.
        warnings: why figures may differ without a cause in the method.
    """

    names: tuple[str, str]
    shared: int
    equal: int
    changes: tuple[Change, ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    warnings: tuple[str, ...]

    def markdown(self) -> str:
        """A heading, a warning where one is due, and a table of the changes."""
        parts = [f"# {self.names[0]} → {self.names[1]}"]
        if self.warnings:
            parts.append(f"Careful: {'; '.join(self.warnings)}.")
        if self.changes:
            frame = pd.DataFrame(map(_line, self.changes))
            align = ["left"] * 4 + ["right"] * 3 + ["left"]
            parts.append(str(frame.to_markdown(index=False, disable_numparse=True, colalign=align)))
            parts.append(f"{self.shared} rows in both; {self.equal} of their figures are equal.")
        elif self.shared:
            parts.append(f"{self.shared} rows in both, all with equal figures.")
        else:
            parts.append("No row is in both.")
        for name, titles in zip(self.names, self.alone, strict=True):
            if titles:
                parts.append(f"Only in {name}: {'; '.join(titles)}.")
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """The changes, six significant digits, empty where nothing is recorded."""
        frame = pd.DataFrame(map(asdict, self.changes), columns=list(Change.__annotations__))
        return str(frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def compare(first: Path, second: Path) -> Comparison:
    """Match the rows of two results folders (or their ``records.jsonl``).

    Rows are matched by sweep, predictor, method, sampler and axes; of several that agree in all
    of them, the one recorded last counts.

    Raises:
        RecordError: if either cannot be read.
    """
    folders = [
        read_folder(path.parent if path.name == RECORDS_FILE else path) for path in (first, second)
    ]
    ours, theirs = (_rows(folder) for folder in folders)
    shared = [name for name in ours if name in theirs]
    changes, equal = [], 0
    for name in shared:
        for metric in METRICS:
            a, b = ours[name][metric], theirs[name][metric]
            if math.isnan(a) or math.isnan(b):
                continue
            if a == b:
                equal += 1
            else:
                changes.append(_change(name, metric, ours[name], theirs[name]))
    return Comparison(
        (str(first), str(second)),
        len(shared),
        equal,
        tuple(changes),
        (
            tuple(_title(name) for name in ours if name not in theirs),
            tuple(_title(name) for name in theirs if name not in ours),
        ),
        tuple(_warnings(folders, [(ours[name], theirs[name]) for name in shared])),
    )


def _rows(folder: Folder) -> dict[str, pd.Series]:
    found: dict[str, pd.Series] = {}
    for records in folder.sweeps:
        for _, row in records.rows.set_index("key", drop=False).loc[list(records.raw)].iterrows():
            name = [records.sweep, row["predictor"], row["method"], row["sampler"] or ""]
            found[json.dumps([*name, row["axes"]], sort_keys=True)] = row
    return found


def _change(name: str, metric: str, ours: pd.Series, theirs: pd.Series) -> Change:
    sweep, predictor, method, sampler, axes = json.loads(name)
    first, second = ([row[metric + end] for end in ("", "_low", "_high")] for row in (ours, theirs))
    apart = bool(first[1] > second[2] or second[1] > first[2])  # never where a bound is NaN
    where = (sweep, predictor, method, sampler, json.dumps(axes, sort_keys=True))
    return Change(*where, metric, *first, *second, second[0] - first[0], apart)


def _warnings(folders: list[Folder], pairs: list[tuple[pd.Series, pd.Series]]) -> list[str]:
    a, b = folders
    found = [
        f"{field}s differ: {getattr(a, field)} and {getattr(b, field)}"
        for field in ("setting", "budget")
        if getattr(a, field) != getattr(b, field)
    ]
    for field, what in (("samples_per_fid", "sample counts"), ("feature_extractor", "extractors")):
        values = [(ours[field], theirs[field]) for ours, theirs in pairs]
        if any(x != y and not (pd.isna(x) or pd.isna(y)) for x, y in values):
            found.append(f"{what} of FID differ: do not compare FIDs")
    return found


def _line(change: Change) -> dict[str, str]:
    about = METRICS[change.metric]
    method = f"{change.method}, {change.sampler}" if change.sampler else change.method
    sign = "+" if change.change > 0 else "-"
    line = {
        "sweep": change.sweep,
        "predictor": change.predictor,
        "method": method,
        "metric": about.title,
        "first": format(change.first, about.spec),
        "second": format(change.second, about.spec),
        "change": sign + format(abs(change.change), about.spec),
        "": "intervals apart" if change.intervals_apart else "",
    }
    return {name: text.replace("|", "\\|") for name, text in line.items()}


def _title(name: str) -> str:
    sweep, predictor, method, sampler, _ = json.loads(name)
    return " / ".join(part for part in (sweep, predictor, method, sampler) if part)
