"""A sweep's rows as a figure: lines over an axis, points with intervals, or a Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, StrMethodFormatter

from reports.figures import DPI, theme
from reports.metrics import METRICS
from reports.records import NO_PREDICTOR, Records
from reports.tables import told_by_axes

__all__ = [
    "drawn_metrics",
    "front",
    "front_facets",
    "lines_figure",
    "pareto_figure",
    "points_figure",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DRAWN = ("depth_rmse", "pixel_error", "accuracy", "fid", "noisy_accuracy", "gradient_cosine")
DENSE = {"depth": "depth_rmse", "segmentation": "pixel_error"}
"""What guidance towards a map is judged by; FID and, if no class is asked for, accuracy say
nothing of it."""
TOGETHER = "all three"
"""Called the predictor of rows that guide towards a class and both maps."""
MANY_LABELS = 100
COSTS = (
    "trainable_share",
    "train_seconds",
    "relative_seconds",
    "seconds_per_image",
    "denoiser_forward",
    "denoiser_backward",
    "peak_memory_mib",
)
WIDTH = 4.1


def lines_figure(records: Records) -> Figure:
    """Each quality over the sweep's first numeric axis, a line for each value of the others.

    Bands are the rows' 95 % intervals. A facet for each predictor, below each other. Rows of other
    samplers have other lines, and those without a value on the axis none.
    """
    rows, info = records.rows, records.info
    axis = next(name for name, scale in info.axes.items() if scale != "category")
    others = [name for name in info.axes if name != axis]
    metrics = drawn_metrics(records)
    predictors = sorted(set(rows["predictor"]))
    data = rows.assign(
        x=[axes.get(axis, math.nan) for axes in rows["axes"]],
        hue=[_line_name(row, others, rows) for _, row in rows.iterrows()],
    )
    names = list(dict.fromkeys(data.loc[data["x"].notna(), "hue"]))
    if (data["hue"] == data["predictor"]).all():  # a task each: lines of one facet
        data, predictors = data.assign(predictor=""), [""]
    with theme():
        figure, grid = _grid(len(predictors), len(metrics))
        for line, predictor in zip(grid, predictors, strict=True):
            for axes, metric in zip(line, metrics, strict=True):
                part = data[data["predictor"] == predictor]
                for place, name in enumerate(names):
                    own = part[part["hue"] == name].sort_values("x")
                    _draw_line(axes, own, metric, _look(place) | {"label": name})
                if info.axes[axis] == "log":
                    axes.set_xscale("log")
                    ticks = sorted(set(part["x"].dropna()))
                    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
                    axes.minorticks_off()
                axes.set(xlabel=axis, ylabel=METRICS[metric].title)
                if len(predictors) > 1:
                    axes.set_title(predictor)
        if len(names) > 1:
            handles = [
                Line2D([], [], label=name, markersize=4.5, **_look(place))
                for place, name in enumerate(names)
            ]
            columns = min(4, len(names))
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def points_figure(records: Records) -> Figure:
    """Each quality of every row as a point with its interval, rows from top to bottom."""
    rows = records.rows.reset_index(drop=True)
    metrics = drawn_metrics(records)
    several = rows["predictor"].nunique() > 1 or rows["sampler"].nunique() > 1
    labels = [_label(row, rows) if several else str(row["method"]) for _, row in rows.iterrows()]
    if told_by_axes(rows):
        labels = [
            ", ".join([label, *(f"{axis} {value}" for axis, value in axes.items())])
            for label, axes in zip(labels, rows["axes"], strict=True)
        ]
    with theme():
        figure = Figure(figsize=(2.2 + 3.4 * len(metrics), 1.1 + 0.27 * len(rows)), dpi=DPI)
        figure.set_layout_engine("constrained")
        facets = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        predictors = list(dict.fromkeys(rows["predictor"]))
        for axes, metric in zip(facets, metrics, strict=True):
            for place, row in rows.iterrows():
                colour = COLOURS[predictors.index(row["predictor"]) % len(COLOURS)]
                low, high = row[f"{metric}_low"], row[f"{metric}_high"]
                if not math.isnan(low):
                    axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
                filled = colour if not row["reference"] else "white"
                axes.plot(row[metric], place, "o", color=colour, markerfacecolor=filled, zorder=3)
            axes.set_xlabel(METRICS[metric].title)
            axes.grid(visible=False, axis="y")
        facets[0].set_yticks(range(len(rows)), labels)
        facets[0].invert_yaxis()
        if len(predictors) > 1:
            handles = [
                Line2D([], [], marker="o", color=COLOURS[k % len(COLOURS)], label=f"by {name}")
                for k, name in enumerate(predictors)
                if name != NO_PREDICTOR
            ]
            columns = min(len(handles), 4)
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def pareto_figure(records: Records) -> Figure:
    """Quality against what an adapter or an image costs, with the front of the best.

    A line of facets for each quality of each predictor: rows that guide towards other targets, or
    by another predictor, are no rivals.
    """
    costs, lines = front_facets(records)
    first = next(iter(records.info.axes), "")
    rows = records.rows.assign(kind=[str(axes.get(first, "")) for axes in records.rows["axes"]])
    names = list(dict.fromkeys(rows["kind"]))
    guided = list(dict.fromkeys(predictor for predictor, _ in lines))
    parts = {name: rows[rows["predictor"] == name].reset_index(drop=True) for name in guided}
    with theme():
        figure, grid = _grid(len(lines), len(costs))
        for line, (predictor, metric) in zip(grid, lines, strict=True):
            part = parts[predictor]
            for axes, cost in zip(line, costs, strict=True):
                low, high = part[cost].min(), part[cost].max()
                if low > 0 and high > 8 * low:
                    _in_logarithms(axes, high / low)
                _draw_front(axes, part, cost, metric)
                for kind, own in part.groupby("kind"):
                    look = _look(names.index(str(kind)))
                    axes.plot(own[cost], own[metric], linestyle="", markersize=5, **look)
                axes.set(xlabel=METRICS[cost].title, ylabel=METRICS[metric].title)
                axes.margins(x=0.12, y=0.14)  # the front's names stay within
            if len(guided) > 1:
                line[0].set_title(predictor)
        handles = [
            grid[0][0].plot([], [], linestyle="", label=f"{first}: {name}", **_look(place))[0]
            for place, name in enumerate(names)
        ]
        columns = min(len(names), len(MARKERS))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def front_facets(records: Records) -> tuple[list[str], list[tuple[str, str]]]:
    """Which costs a Pareto figure has, and which qualities of which predictors.

    Either is empty where there is nothing to draw, as of rows that nothing guides.
    """
    rows = records.rows[records.rows["predictor"] != NO_PREDICTOR]
    shown = [name for name in COSTS if name in records.info.metrics]
    costs = _present(rows, shown or [name for name in COSTS if name in rows])
    if {"relative_seconds", "seconds_per_image"} <= set(costs):
        timed = rows[rows["seconds_per_image"].notna()]
        everywhere = bool(timed["relative_seconds"].notna().all())
        costs.remove("seconds_per_image" if everywhere else "relative_seconds")
    guided = dict.fromkeys(rows["predictor"])
    lines = [
        (name, metric)
        for name in guided
        for metric in _qualities(rows[rows["predictor"] == name], name)
    ]
    return costs, lines


def _qualities(rows: pd.DataFrame, predictor: str) -> list[str]:
    """What rows of a predictor are drawn by: those that guide towards a map, by its error."""
    if predictor == TOGETHER:
        return _present(rows, [*DENSE.values(), "accuracy"])
    return _present(rows, [DENSE[predictor]] if predictor in DENSE else ["accuracy", "fid"])


def _in_logarithms(axes: Axes, reach: float) -> None:
    """The x-axis, with so many times the least value on it, in labels that stay apart."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if reach < MANY_LABELS else (1,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()


def drawn_metrics(records: Records) -> list[str]:
    """The qualities that a sweep's figure shows: of guidance towards maps, their errors."""
    rows = records.rows
    metrics = _present(rows, [name for name in DRAWN if name in records.info.metrics])
    if not set(metrics) & set(DENSE.values()):
        return metrics
    guided = set(rows["predictor"]) - {NO_PREDICTOR}
    beside_the_point = {"fid"} | ({"accuracy"} if guided <= DENSE.keys() else set())
    return [name for name in metrics if name not in beside_the_point]


def front(costs: Sequence[float], qualities: Sequence[float], higher: bool) -> list[int]:
    """Positions of the points that no other beats, cheapest first.

    A point is beaten by one that costs no more and is better, or costs less and is as good.
    NaN is never on the front.
    """
    sign = 1 if higher else -1
    places = [
        i for i in range(len(costs)) if not (math.isnan(costs[i]) or math.isnan(qualities[i]))
    ]
    places.sort(key=lambda i: (costs[i], -sign * qualities[i]))
    best, found = -math.inf, []
    for place in places:
        if sign * qualities[place] > best:
            best = sign * qualities[place]
            found.append(place)
    return found


def _draw_line(axes: Axes, line: pd.DataFrame, metric: str, look: dict[str, Any]) -> None:
    axes.plot(line["x"], line[metric], markersize=4.5, **look)
    low, high, band = line[f"{metric}_low"], line[f"{metric}_high"], look["color"]
    if low.notna().any():
        axes.fill_between(line["x"].astype(float), low, high, color=band, alpha=0.15, linewidth=0)


def _look(place: int) -> dict[str, Any]:
    """Colour and marker, together another of each of 64 places."""
    turn, marker = divmod(place, len(MARKERS))
    return {"marker": MARKERS[marker], "color": COLOURS[(marker + turn) % len(COLOURS)]}


def _line_name(row: pd.Series, others: Sequence[str], rows: pd.DataFrame) -> str:
    """What tells a row's line from those beside it."""
    parts = [str(row["axes"].get(name, f"no {name}")) for name in others]
    return ", ".join([*parts, *_sampler(row, rows)])


def _sampler(row: pd.Series, rows: pd.DataFrame) -> list[str]:
    """A row's sampler, if it has one and others have others."""
    told = rows["sampler"].nunique() > 1 and pd.notna(row["sampler"])
    return [str(row["sampler"])] * bool(told)


def _draw_front(axes: Axes, rows: pd.DataFrame, cost: str, metric: str) -> None:
    higher = METRICS[metric].better == "higher"
    places = front(list(rows[cost]), list(rows[metric]), higher)
    points = rows.loc[places]
    axes.plot(points[cost], points[metric], color="0.45", linewidth=1.1, zorder=1)
    low, high = rows[cost].min(), rows[cost].max()
    middle = (low + high) / 2 if axes.get_xscale() == "linear" else math.sqrt(low * high)
    for place, (_, row) in enumerate(points.iterrows()):
        on_the_left = row[cost] <= middle
        axes.annotate(
            str(row["method"]),
            (row[cost], row[metric]),
            xytext=(4 if on_the_left else -4, -9 if place % 2 else 5),
            textcoords="offset points",
            ha="left" if on_the_left else "right",
            fontsize=7,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(0.4 + WIDTH * columns, 0.7 + 3.1 * rows), dpi=DPI)
    figure.set_layout_engine("constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
    return figure, [list(line) for line in axes]


def _present(rows: pd.DataFrame, names: list[str]) -> list[str]:
    return [name for name in names if rows[name].notna().any()]


def _label(row: pd.Series, rows: pd.DataFrame) -> str:
    parts = [str(row["method"])]
    if row["predictor"] != NO_PREDICTOR and rows["predictor"].nunique() > 1:
        parts.append(str(row["predictor"]))
    return ", ".join([*parts, *_sampler(row, rows)])
