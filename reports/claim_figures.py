"""Figures of claims: contrasts as a forest, and the curves that they are read off."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ppap.evaluation.curves import common_distances
from reports.arms import Arm
from reports.claim_tables import metric_name
from reports.claims import Finding
from reports.figures import DPI, draw_legend, theme
from reports.metrics import METRICS
from reports.records import NO_PREDICTOR
from reports.statistics import mean
from reports.styles import Style, styles

__all__ = ["LOOKS", "curves_figure", "forest_figure"]

LOOKS = {
    "supported": ("#00795B", "o", True),
    "refuted": ("#C04000", "s", True),
    "open": ("#666666", "D", False),
}
"""By verdict: colour, marker, and whether it is filled. The verdict is written beside it, too."""
FOREST_WIDTH = 4.0
"""Inches: 384 pixels, so that a telephone shows the figure as it is."""
LINE_HEIGHT = 0.155
CHARACTERS = 44
WIDE = 20
"""Times that the largest end of an interval exceeds the least that matters, from which on the
axis is logarithmic beyond it."""
GRID = 60


def forest_figure(findings: Sequence[Finding]) -> Figure:
    """Each claim's difference with its interval, coloured and labelled by verdict.

    A panel for each unit that differences are measured in. The name of a claim stands above its
    line, so that the figure is narrow; its margin is a grey bar; a claim without a test has no
    point. ``findings`` is not empty.
    """
    units = list(dict.fromkeys(finding.unit for finding in findings))
    groups = [[f for f in findings if f.unit == unit] for unit in units]
    heights = [sum(map(_lines, group)) * LINE_HEIGHT + 0.62 for group in groups]
    with theme():
        figure = Figure(figsize=(FOREST_WIDTH, sum(heights)), dpi=DPI)
        figure.set_layout_engine("constrained")
        panels = figure.subplots(len(units), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, unit, group in zip(panels, units, groups, strict=True):
            _draw_contrasts(axes, unit, group)
    return figure


def curves_figure(arms: Sequence[Arm]) -> Figure:
    """Score against distance, and below it the gap between what the guide and the judge see.

    A column for each predictor. Lines join the scales, means over units; bands are 95 % t
    intervals over units at equal distance, where all units of the arm reach it. ``arms`` is not
    empty.
    """
    looks = styles(list(dict.fromkeys(arm.method for arm in arms)))
    predictors = sorted({arm.predictor for arm in arms} - {NO_PREDICTOR}) or [NO_PREDICTOR]
    gaps = any(arm.points["gap"].notna().any() for arm in arms)
    with theme():
        figure = Figure(figsize=(1.2 + 4.3 * len(predictors), 4.0 + 2.6 * gaps), dpi=DPI)
        figure.set_layout_engine("constrained")
        ratios = [3.4, 2.2][: 1 + gaps]
        grid = figure.subplots(
            1 + gaps, len(predictors), squeeze=False, sharex="col", height_ratios=ratios
        )
        for column, predictor in zip(grid.T, predictors, strict=True):
            guided = [arm for arm in arms if arm.predictor == predictor]
            beside = [arm for arm in arms if arm.predictor == NO_PREDICTOR != predictor]
            own = guided + [arm for arm in beside if arm.metric == guided[0].metric]
            for arm in own:
                _draw_curve(column[0], arm, looks[arm.method])
            column[0].set(title=predictor, ylabel=_score_label(own[0]))
            believed = any(arm.points["gap"].notna().any() for arm in own)
            if believed:
                _draw_gaps(column[1], own, looks)
            elif gaps:
                column[1].set_visible(False)
                column[0].tick_params(labelbottom=True)
            _label_distances(column[int(believed)])
        draw_legend(figure, list(looks), looks, markers=True)
    return figure


def _draw_contrasts(axes: Axes, unit: str, findings: Sequence[Finding]) -> None:
    down = 0.0
    across = axes.get_yaxis_transform()
    axes.axvline(0, color="0.45", linewidth=1, zorder=0.8)
    for finding in findings:
        colour, marker, filled = LOOKS[finding.verdict]
        name = _name(finding)
        axes.text(0.0, down, name, transform=across, va="top", fontsize=8.2)
        look = {"transform": across, "va": "top", "color": colour, "fontsize": 8.2}
        axes.text(1.0, down, finding.verdict, ha="right", weight="bold", **look)
        place = down + name.count("\n") + 1.7
        if finding.test and (margin := finding.claim.margin):
            axes.plot([-margin, margin], [place] * 2, color="0.86", linewidth=9, zorder=0.6,
                      solid_capstyle="butt")  # fmt: skip
        if (test := finding.test) is None:
            axes.text(0.0, place, finding.reason, transform=across, va="center", fontsize=7.2,
                      style="italic", color=colour, wrap=True)  # fmt: skip
        else:
            if not math.isnan(test.low):
                axes.plot([test.low, test.high], [place] * 2, color=colour, linewidth=2)
            face = colour if filled else "white"
            axes.plot(test.value, place, marker, color=colour, markerfacecolor=face, markersize=6)
        down += _lines(finding)
    axes.set_ylim(down - 0.2, -0.4)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.tick_params(labelsize=8)
    told = METRICS[unit].header if unit in METRICS else unit
    axes.set_xlabel(f"difference in {told}, ours less theirs", fontsize=8.5)
    _stretch(axes, findings)


def _stretch(axes: Axes, findings: Sequence[Finding]) -> None:
    """Logarithms beyond the margins, where some differences are far larger than others."""
    tests = [finding.test for finding in findings if finding.test]
    ends = [abs(end) for test in tests for end in (test.low, test.high, test.value)]
    ends = [end for end in ends if end > 0]
    margins = [finding.claim.margin for finding in findings if finding.claim.margin]
    if not ends:
        axes.set_xlim(-1, 1)
        return
    least = max(margins, default=float(np.median(ends)))
    if max(ends) > WIDE * least:
        axes.set_xscale("symlog", linthresh=least, linscale=1.5)
        powers = [10.0**k for k in range(-6, 6) if least < 10.0**k <= max(ends)]
        sides = [side for power in powers for side in (-power, power)]
        reach = axes.get_xlim()
        ticks = sorted(t for t in (-least, 0.0, least, *sides) if reach[0] <= t <= reach[1])
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.margins(x=0.06)


def _name(finding: Finding) -> str:
    name = f"{finding.claim.name}, {finding.claim.predictor}"
    return textwrap.fill(name, CHARACTERS)


def _lines(finding: Finding) -> float:
    """Height of a claim in lines of text."""
    return _name(finding).count("\n") + 3.1


def _draw_curve(axes: Axes, arm: Arm, look: Style) -> None:
    _draw_path(axes, arm, "score", look)
    reach = common_distances(arm.curves.values())
    if len(arm.units) < 2 or reach is None or reach[0] == reach[1]:
        return
    # Within the ends, which rounding may push beyond what the curve reaches.
    distances = np.geomspace(*reach, GRID)[1:-1]
    read = [[curve.score_at(float(d)) for curve in arm.curves.values()] for d in distances]
    found = [mean(scores) for scores in read]
    low, high = [one.low for one in found], [one.high for one in found]
    axes.fill_between(distances, low, high, color=look.colour, alpha=0.16, linewidth=0)


def _draw_gaps(axes: Axes, arms: Sequence[Arm], looks: dict[str, Style]) -> None:
    for arm in arms:
        _draw_path(axes, arm, "gap", looks[arm.method])
    axes.axhline(0, color="0.6", linewidth=0.9, zorder=0.5)
    axes.set_ylabel("gap of guide and judge")


def _draw_path(axes: Axes, arm: Arm, name: str, look: Style) -> None:
    """Means over units, joined in the order of the scales."""
    points = arm.points.assign(log=np.log(arm.points["pixel_fid"]))
    means = points.groupby("scale")[["log", name]].mean()
    if means[name].isna().all():
        return
    axes.plot(
        np.exp(means["log"]),
        means[name],
        color=look.colour,
        marker=look.marker,
        markersize=4.5,
        linewidth=1.5,
        linestyle=(0, look.dash) if look.dash else "-",
    )


def _score_label(arm: Arm) -> str:
    arrow = "↑" if arm.higher_is_better else "↓"
    return f"{metric_name(arm)} {arrow}"


def _label_distances(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("distance of pixels from real images (← lower is better)")
