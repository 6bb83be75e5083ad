"""The table of methods: CSV for programs, Markdown for readers, the same rows in both."""

from __future__ import annotations

import math
from typing import Literal

import pandas as pd

from reports.records import NO_PREDICTOR, Records

__all__ = ["BETTER", "CSV_COLUMNS", "csv_table", "headline", "markdown_table"]

CSV_COLUMNS = (
    "method",
    "predictor",
    "supervision",
    "experts",
    "trainable_share",
    "sampler",
    "scale",
    "seeds",
    "samples",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "fid",
    "fid_low",
    "fid_high",
    "inception_score",
    "precision",
    "recall",
    "images_per_second",
    "peak_memory_mib",
)

BETTER: dict[str, Literal["higher", "lower"]] = {
    "accuracy": "higher",
    "fid": "lower",
    "inception_score": "higher",
    "precision": "higher",
    "recall": "higher",
    "images_per_second": "higher",
    "peak_memory_mib": "lower",
}

HEADERS = {
    "trainable_share": "trained share",
    "fid": "FID",
    "inception_score": "IS",
    "images_per_second": "images/s",
    "peak_memory_mib": "peak MiB",
}
FORMATS = {
    "trainable_share": ".2%",
    "scale": "g",
    "samples": ",d",
    "accuracy": ".3f",
    "fid": "#.4g",
    "inception_score": ".2f",
    "precision": ".3f",
    "recall": ".3f",
    "images_per_second": ",.2f",
    "peak_memory_mib": ",.0f",
}
WORDS = ("method", "predictor", "supervision", "sampler")
NOT_MEASURED = "n/a"


def csv_table(records: Records) -> str:
    """The rows as CSV: `CSV_COLUMNS`, six significant digits, empty where not measured.

    ``seeds`` is how many seeds; ``accuracy``, ``precision``, ``recall`` and
    ``trainable_share`` are fractions.
    """
    table = records.rows.assign(seeds=records.rows["seeds"].map(len))[list(CSV_COLUMNS)]
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return str(text)


def markdown_table(records: Records) -> str:
    """The rows as a Markdown table, intervals folded into the cell of their value.

    Within each predictor the best guided row of every metric in `BETTER` is bold, ties
    included, as far as the digits shown tell them apart; where all guided rows tie, none is.
    """
    rows = records.rows
    columns = [name for name in CSV_COLUMNS if not name.endswith(("_low", "_high"))]
    table = pd.DataFrame({_header(name): _cells(rows, name) for name in columns})
    align = tuple("left" if name in WORDS else "right" for name in columns)
    return str(table.to_markdown(index=False, disable_numparse=True, colalign=align))


def headline(records: Records) -> str:
    """One line on where the rows come from: scale of the run, evaluation, machine, commit."""
    rows = records.rows
    title = f"Setting **{records.setting}**, budget **{records.budget}**"
    if rows.empty:
        return f"{title}."
    commits = [
        f"`{commit[:12]}`{' (dirty)' if dirty else ''}"
        for commit, dirty in dict.fromkeys(zip(rows["commit"], rows["dirty"], strict=True))
    ]
    parts = (
        title,
        f"{_range(rows['samples'])} samples per row",
        " or ".join(dict.fromkeys(map(_seeds, rows["seeds"]))),
        f"FID on {_range(rows['samples_per_fid'])} samples",
        f"features of {_distinct(rows, 'feature_extractor')}",
        f"hardware {_distinct(rows, 'hardware')}",
        f"commit {', '.join(commits)}",
    )
    return "; ".join(parts) + "."


def _header(name: str) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(BETTER.get(name, ""), "")
    return HEADERS.get(name, name) + arrow


def _cells(rows: pd.DataFrame, name: str) -> list[str]:
    values = rows["seeds"].map(len) if name == "seeds" else rows[name]
    shown = [_show(value, FORMATS.get(name, "")) for value in values]
    best = _best(rows, name, shown) if name in BETTER else set()
    cells = [f"**{text}**" if i in best else text for i, text in enumerate(shown)]
    if f"{name}_low" not in rows:
        return cells
    return [
        text if math.isnan(low) or math.isnan(high) else f"{text} {_interval(low, high, name)}"
        for text, low, high in zip(cells, rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
    ]


def _best(rows: pd.DataFrame, name: str, shown: list[str]) -> set[int]:
    """Positions of the best guided row of each predictor, and of those that read the same."""
    guided = rows.reset_index(drop=True)
    guided = guided[(guided["predictor"] != NO_PREDICTOR) & (guided["method"] != "unguided")]
    best: set[int] = set()
    for _, group in guided.groupby("predictor"):
        values = group[name].dropna()
        places = [int(str(place)) for place in values.index]
        if len({shown[place] for place in places}) < 2:
            continue
        top = values.argmax() if BETTER[name] == "higher" else values.argmin()
        best |= {place for place in places if shown[place] == shown[places[int(top)]]}
    return best


def _show(value: object, spec: str) -> str:
    if isinstance(value, float) and math.isnan(value):
        return NOT_MEASURED
    return format(value, spec)


def _interval(low: float, high: float, name: str) -> str:
    return f"[{low:{FORMATS[name]}}, {high:{FORMATS[name]}}]"


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _distinct(rows: pd.DataFrame, name: str) -> str:
    return " / ".join(dict.fromkeys(rows[name]))
