"""A sweep's table: the same rows and cells as CSV and Markdown, and for LaTeX and the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from reports.metrics import METRICS
from reports.records import NO_PREDICTOR, Records

__all__ = [
    "Cell",
    "Table",
    "csv_table",
    "headline",
    "legend",
    "markdown_table",
    "p_text",
    "told_by_axes",
]

LEADING = {"supervision": "", "experts": "", "adapter": "", "sampler": ""}
TRAILING = {"trainable_share": "", "scale": "g", "seeds": "", "samples": ",d"}
CSV_FACTS = (
    "supervision", "experts", "adapter", "trainable_share", "sampler", "scale", "seeds", "samples",
)  # fmt: skip
COMPARED = {
    "accuracy": ("Δ accuracy", "+.3f"),
    "depth_rmse": ("Δ depth error", "+.3f"),
    "mean_iou": ("Δ mIoU", "+.3f"),
    "fid": ("Δ FID", "+.2f"),
}
FIRST = ("accuracy", "depth_rmse", "mean_iou", "pixel_error", "fid")
"""Metrics that a page shows before it is asked for more."""
NOT_MEASURED = "n/a"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is shown, without the interval.
        interval: what is shown after it; empty for none.
        value: what is sorted by.
        best: whether it is the best of its group.
    """

    text: str
    interval: str = ""
    value: float | str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: of each column.
        words: which columns are text.
        lines: a list of cells for each row.
        keys: of the rows' records.
        primary: columns that a page shows first; the others wait. Empty for all.
    """

    header: tuple[str, ...]
    words: tuple[bool, ...]
    lines: tuple[tuple[Cell, ...], ...]
    keys: tuple[str, ...]
    primary: frozenset[str] = frozenset()

    @classmethod
    def of(cls, records: Records) -> Table:
        """The sweep's table, with the columns in which its rows differ or are measured.

        Within each predictor the best guided row of every metric is marked, ties included, as
        far as the digits shown tell them apart; where all guided rows tie, none is, nor of
        what was measured a single time.
        """
        rows = records.rows.reset_index(drop=True)
        columns: dict[str, list[Cell]] = {"method": _words(rows["method"])}
        words = {"method"}
        if rows["predictor"].nunique() > 1 or (rows["predictor"] != NO_PREDICTOR).any():
            columns["predictor"] = _words(rows["predictor"])
            words.add("predictor")
        if told_by_axes(rows):
            for axis in records.info.axes:
                columns[axis] = _words(pd.Series([axes.get(axis, "") for axes in rows["axes"]]))
                words.add(axis)
        for name, spec in LEADING.items():
            if name not in columns and _is_worth_a_column(rows, name):
                columns[name] = _fact_cells(rows, name, spec)
                words |= {name} - {"experts"}
        for name in records.info.metrics:
            if rows[name].notna().any():
                columns[METRICS[name].title] = _metric_cells(rows, name)
        for metric, (title, spec) in COMPARED.items():
            if not records.comparisons.empty and metric in records.info.metrics:
                columns[title] = _difference_cells(records, metric, spec)
        for name, spec in TRAILING.items():
            if name in records.info.metrics or not _is_worth_a_column(rows, name):
                continue
            if name in METRICS:
                columns[METRICS[name].title] = _metric_cells(rows, name)
            else:
                columns[name] = _fact_cells(rows, name, spec)
        lines = tuple(zip(*columns.values(), strict=True))
        header, keys = tuple(columns), tuple(rows["key"])
        first = [METRICS[name].title for name in FIRST] + [title for title, _ in COMPARED.values()]
        primary = frozenset({"method", "predictor", "sampler", *first})
        if not set(first) & set(header):
            primary = frozenset()
        return cls(header, tuple(name in words for name in header), lines, keys, primary)


def csv_table(records: Records) -> str:
    """The rows as CSV: facts, every metric with its interval, axes, differences.

    Six significant digits, empty where not measured; ``seeds`` is how many; shares are
    fractions.
    """
    rows = records.rows
    facts = ["method", "predictor", *CSV_FACTS]
    table = rows[[name for name in facts if name != "seeds"]].copy()
    table.insert(facts.index("seeds"), "seeds", rows["seeds"].map(len))
    if records.rehearsed:
        table.insert(0, "rehearsal", True)
    for name in METRICS:
        if name not in facts and rows[name].notna().any():
            bounds = [f"{name}_low", f"{name}_high"] if rows[f"{name}_low"].notna().any() else []
            table[[name, *bounds]] = rows[[name, *bounds]]
    for axis in records.info.axes:
        table[f"axis:{axis}"] = [axes.get(axis, "") for axes in rows["axes"]]
    if not records.comparisons.empty:
        for metric in records.comparisons["metric"].unique():
            found = records.comparisons[records.comparisons["metric"] == metric].set_index("row")
            for field in ("value", "low", "high", "p", "p_corrected"):
                table[f"delta_{metric}_{field}"] = rows["key"].map(found[field])
    table = table.dropna(axis=1, how="all")
    return str(table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def markdown_table(table: Table) -> str:
    """A table in Markdown, intervals in the cell of their value."""
    body = [[_markdown(cell) for cell in line] for line in table.lines]
    frame = pd.DataFrame(body, columns=list(table.header))
    align = tuple("left" if word else "right" for word in table.words)
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def headline(records: Records) -> str:
    """One line on where the rows come from: scale of the run, evaluation, machine, commit."""
    rows = records.rows
    title = f"Setting **{records.setting}**, budget **{records.budget}**"
    if records.rehearsed:
        title = f"**Rehearsal on seeded weights: not a result.** {title}"
    if rows.empty:
        return f"{title}."
    parts = [title]
    if rows["samples"].notna().any():
        parts.append(f"{_range(rows['samples'])} samples per row")
    if seeds := [seeds for seeds in dict.fromkeys(rows["seeds"]) if seeds]:
        parts.append(" or ".join(map(_seeds, seeds)))
    if rows["samples_per_fid"].notna().any():
        parts.append(f"FID on {_range(rows['samples_per_fid'])} samples")
        parts.append(f"features of {_distinct(rows, 'feature_extractor')}")
    commits = [
        f"`{commit[:12]}`{' (dirty)' if dirty else ''}"
        for commit, dirty in dict.fromkeys(zip(rows["commit"], rows["dirty"], strict=True))
    ]
    parts += [f"hardware {_distinct(rows, 'hardware')}", f"commit {', '.join(commits)}"]
    return "; ".join(parts) + "."


def legend(records: Records) -> list[str]:
    """What the columns of the sweep's table mean, a line each."""
    rows = records.rows
    lines = []
    if rows["accuracy_low"].notna().any():
        lines.append("Brackets: 95 % bootstrap interval over seeds and samples.")
    bold = "bold: the best guided row of its predictor"
    if any(METRICS[name].once and rows[name].notna().any() for name in records.info.metrics):
        bold += ", but not of times and peak memory, which were measured a single time"
    lines.append(f"↑ higher is better, ↓ lower is better; {bold}.")
    if not records.comparisons.empty:
        lines.append(
            "Δ: difference to the reference row, paired on sampling seeds; p two-sided, from the "
            "paired bootstrap, Holm-corrected for the number of rows. Training seeds are few: "
            "the interval between them is the least certain part."
        )
    names = [
        name for name in (*records.info.metrics, "trainable_share") if rows[name].notna().any()
    ]
    lines += [f"{METRICS[name].header}: {METRICS[name].meaning}." for name in dict.fromkeys(names)]
    if rows["scale"].notna().any():
        lines.append(
            "scale: of the guidance gradient, empty where several guides have one each; "
            "samples: over all seeds."
        )
    return lines


def told_by_axes(rows: pd.DataFrame) -> bool:
    """Whether only their values on the sweep's axes tell some rows from each other."""
    return bool(rows.duplicated(["method", "predictor", "sampler"]).any())


def _words(values: pd.Series) -> list[Cell]:
    return [Cell(str(value), value=str(value)) for value in values]


def _is_worth_a_column(rows: pd.DataFrame, name: str) -> bool:
    """Facts that every row shares are told by the headline; these three never are."""
    present = rows["seeds"].map(len) if name == "seeds" else rows[name]
    if name == "trainable_share":
        return bool((present > 0).any())
    if name in ("scale", "seeds", "samples"):
        return bool(present.notna().any() and (present != 0).any())
    return present.dropna().nunique() > 1


def _fact_cells(rows: pd.DataFrame, name: str, spec: str) -> list[Cell]:
    values = rows["seeds"].map(len) if name == "seeds" else rows[name]
    cells = []
    for value in values:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            cells.append(Cell(NOT_MEASURED))
        elif isinstance(value, str):
            cells.append(Cell(value, value=value))
        else:
            whole = int(value) if name in ("experts", "seeds", "samples") else float(value)
            cells.append(Cell(format(whole, spec), value=whole))
    return cells


def _metric_cells(rows: pd.DataFrame, name: str) -> list[Cell]:
    spec = METRICS[name].spec
    shown = [NOT_MEASURED if math.isnan(v) else format(v, spec) for v in rows[name]]
    marked = METRICS[name].better and not METRICS[name].once
    best = _best(rows, name, shown) if marked else set()
    cells = []
    for place, (text, value) in enumerate(zip(shown, rows[name], strict=True)):
        low, high = rows[f"{name}_low"][place], rows[f"{name}_high"][place]
        known = not (math.isnan(low) or math.isnan(high) or math.isnan(value))
        interval = f"[{low:{spec}}, {high:{spec}}]" if known else ""
        cells.append(Cell(text, interval, "" if math.isnan(value) else value, place in best))
    return cells


def _best(rows: pd.DataFrame, name: str, shown: list[str]) -> set[int]:
    """Positions of the best guided row of each predictor, and of those that read the same."""
    guided = rows[(rows["predictor"] != NO_PREDICTOR) & (rows["method"] != "unguided")]
    guided = guided[guided[name].notna()]
    best: set[int] = set()
    for _, group in guided.groupby(["predictor", "sampler"], dropna=False):
        values = group[name]
        places = [int(str(place)) for place in values.index]
        if len({shown[place] for place in places}) < 2:
            continue
        top = values.argmax() if METRICS[name].better == "higher" else values.argmin()
        best |= {place for place in places if shown[place] == shown[places[int(top)]]}
    return best


def _difference_cells(records: Records, metric: str, spec: str) -> list[Cell]:
    found = records.comparisons[records.comparisons["metric"] == metric].set_index("row")
    cells = []
    for key, reference in zip(records.rows["key"], records.rows["reference"], strict=True):
        if key in found.index:
            value, p = (float(found.loc[key, name]) for name in ("value", "p_corrected"))
            shown = NOT_MEASURED if math.isnan(value) else format(value, spec)
            known = not (math.isnan(value) or math.isnan(p))
            cells.append(Cell(shown, f"({p_text(p)})" * known, "" if math.isnan(value) else value))
        else:
            cells.append(Cell("reference" if reference else ""))
    return cells


def p_text(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def _markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} {cell.interval}".strip().replace("|", "\\|")


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _distinct(rows: pd.DataFrame, name: str) -> str:
    return " / ".join(dict.fromkeys(rows[name].dropna()))
