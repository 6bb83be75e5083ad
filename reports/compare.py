"""Two sets of records, row by row: what changed, and whether intervals still overlap."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from reports.metrics import METRICS
from reports.records import RECORDS_FILE, Folder, read_folder

__all__ = ["compare"]

IDENTITY = ("sweep", "predictor", "method", "sampler", "axes")


def compare(first: Path, second: Path) -> str:
    """A Markdown report of the rows of two results folders (or their ``records.jsonl``).

    Rows are matched by sweep, predictor, method, sampler and axes.

    Raises:
        RecordError: if either cannot be read.
    """
    folders = [
        read_folder(path.parent if path.name == RECORDS_FILE else path) for path in (first, second)
    ]
    ours, theirs = (_rows(folder) for folder in folders)
    shared = [name for name in ours.index if name in theirs.index]
    parts = [f"# {first} → {second}", *_warnings(folders, ours, theirs, shared)]
    lines = []
    for name in shared:
        lines += _differences(name, ours.loc[name], theirs.loc[name])
    if lines:
        frame = pd.DataFrame(lines)
        align = ["left"] * 4 + ["right"] * 3 + ["left"]
        parts.append(str(frame.to_markdown(index=False, disable_numparse=True, colalign=align)))
    elif shared:
        parts.append(f"{len(shared)} rows in both, all with equal figures.")
    for path, have, other in ((first, ours, theirs), (second, theirs, ours)):
        alone = [name for name in have.index if name not in other.index]
        if alone:
            parts.append(f"Only in {path}: " + "; ".join(_title(name) for name in alone) + ".")
    return "\n\n".join(parts) + "\n"


def _rows(folder: Folder) -> pd.DataFrame:
    frames = []
    for records in folder.sweeps:
        rows = records.rows.copy()
        if rows.empty:
            continue
        rows["name"] = [
            json.dumps(
                [records.sweep, row["predictor"], row["method"], row["sampler"] or "", row["axes"]],
                sort_keys=True,
            )
            for _, row in rows.iterrows()
        ]
        frames.append(rows)
    return pd.concat(frames).set_index("name") if frames else pd.DataFrame()


def _warnings(
    folders: list[Folder], ours: pd.DataFrame, theirs: pd.DataFrame, shared: list[str]
) -> list[str]:
    """Why figures may differ without a cause in the method."""
    a, b = folders
    found = [
        f"{field}s differ: {getattr(a, field)} and {getattr(b, field)}"
        for field in ("setting", "budget")
        if getattr(a, field) != getattr(b, field)
    ]
    for field, what in (("samples_per_fid", "sample counts"), ("feature_extractor", "extractors")):
        pairs = ((ours.loc[name, field], theirs.loc[name, field]) for name in shared)
        if any(x != y and not (pd.isna(x) and pd.isna(y)) for x, y in pairs):
            found.append(f"{what} of FID differ: do not compare FIDs")
    return [f"Careful: {'; '.join(found)}."] if found else []


def _differences(name: str, ours: pd.Series, theirs: pd.Series) -> list[dict[str, str]]:
    sweep, predictor, method, sampler, _ = json.loads(name)
    lines = []
    for metric, about in METRICS.items():
        a, b = ours[metric], theirs[metric]
        if math.isnan(a) or math.isnan(b) or a == b:
            continue
        apart = (
            ours[f"{metric}_low"] > theirs[f"{metric}_high"]
            or theirs[f"{metric}_low"] > ours[f"{metric}_high"]
        )
        change = b - a
        lines.append(
            {
                "sweep": sweep,
                "predictor": predictor,
                "method": f"{method}, {sampler}" if sampler else method,
                "metric": about.title,
                "first": format(a, about.spec),
                "second": format(b, about.spec),
                "change": f"{'+' if change > 0 else '-'}{format(abs(change), about.spec)}",
                "": "intervals apart" if apart else "",
            }
        )
    return lines


def _title(name: str) -> str:
    sweep, predictor, method, sampler, _ = json.loads(name)
    return " / ".join(part for part in (sweep, predictor, method, sampler) if part)
