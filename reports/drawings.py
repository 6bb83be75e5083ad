"""Which figures a sweep has, drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reports import claim_figures, figures, sweep_figures
from reports.records import Folder, Records, read_folder

__all__ = ["Drawing", "Report", "drawings"]

CAPTIONS = {
    "lines": "Quality over the sweep's axis; bands are 95 % intervals over seeds and samples.",
    "points": "Quality of every row with its 95 % interval; the reference row is hollow.",
    "pareto": "Quality against what it costs; the line joins the rows that no other beats in both.",
}
SWEEP_FIGURES: dict[str, Callable[[Records], Figure]] = {
    "lines": sweep_figures.lines_figure,
    "points": sweep_figures.points_figure,
    "pareto": sweep_figures.pareto_figure,
}


@dataclass(frozen=True)
class Drawing:
    """A figure of a sweep.

    Attributes:
        name: of its files, without ending.
        caption: a sentence.
        draw: makes it.
        narrow: whether a telephone shows it whole.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    narrow: bool = False

    @cached_property
    def png(self) -> bytes:
        """The figure's pixels."""
        return figures.png(self.draw())

    @cached_property
    def svg(self) -> bytes:
        """The figure's vectors."""
        return figures.svg(self.draw())


@dataclass(frozen=True, eq=False)
class Report:
    """A results folder and its figures, each drawn once however often it is shown.

    Attributes:
        folder: what was read.
        drawings: of each of the folder's sweeps, in their order.
    """

    folder: Folder
    drawings: tuple[tuple[Drawing, ...], ...]

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a results folder.

        Raises:
            RecordError: if the records are missing or malformed.
        """
        folder = read_folder(path)
        return cls(folder, tuple(tuple(drawings(records)) for records in folder.sweeps))


def _stamped(figure: Figure, rehearsed: bool) -> Figure:
    """The figure, marked across if it shows no result."""
    if rehearsed:
        look: dict[str, Any] = {"ha": "center", "va": "center", "alpha": 0.6, "zorder": 9}
        figure.text(0.5, 0.5, "REHEARSAL", rotation=20, fontsize=48, color="firebrick", **look)
    return figure


def _figure_kind(records: Records) -> str:
    """As the sweep says, where its rows can be drawn so; none where there is nothing to draw.

    One that says nothing of it has lines over its numeric axis, and lines without such an axis are
    points.
    """
    if records.rows.empty:
        return "none"
    numeric = set(records.info.axes.values()) - {"category"}
    kind = records.info.figure
    if kind == "pareto":
        return kind if all(sweep_figures.front_facets(records)) else "none"
    if kind == "none" and numeric:
        kind = "lines"
    elif kind == "lines" and not numeric:
        kind = "points"
    return kind if sweep_figures.drawn_metrics(records) else "none"


def drawings(records: Records) -> list[Drawing]:
    """The figures that the sweep's records allow."""
    sweep, found = records.sweep, []

    def add(
        name: str, caption: str, draw: Callable[[Records], Figure], narrow: bool = False
    ) -> None:
        drawn = lambda: _stamped(draw(records), records.rehearsed)  # noqa: E731
        found.append(Drawing(name, caption, drawn, narrow))

    if records.findings:
        add(
            f"{sweep}-contrasts",
            "What each claim compares: difference over units with its 95 % interval. Grey: "
            "differences too small to matter.",
            lambda records: claim_figures.forest_figure(records.findings),
            narrow=True,
        )
    if records.arms:
        add(
            f"{sweep}-curves",
            "Score against label-free distance: each point a guidance scale, mean over units; "
            "bands are 95 % intervals over units at equal distance. Below, by how much the guide "
            "finds its samples better than an independent judge does.",
            lambda records: claim_figures.curves_figure(records.arms),
        )

    kind = _figure_kind(records)
    if kind in SWEEP_FIGURES:
        add(sweep, CAPTIONS[kind], SWEEP_FIGURES[kind])
    if not records.noise_accuracy.empty:
        add(
            f"{sweep}-noise-accuracy",
            "Accuracy of each model on noisy test images against timestep: mean over seeds, band "
            "from the lowest to the highest seed; vertical lines bound the five experts' ranges.",
            figures.noise_accuracy_figure,
        )
    if not records.tradeoff.empty:
        add(
            f"{sweep}-tradeoff",
            "Guided accuracy against FID; each point a guidance scale, on the scale-selection "
            "seeds; the scale used in the table is ringed.",
            figures.tradeoff_figure,
        )
    if records.grids:
        add(
            f"{sweep}-samples",
            "Samples; the same column is the same seed in every block.",
            figures.samples_figure,
        )
    if records.strips:
        add(
            f"{sweep}-trajectory",
            "One guided trajectory, noise to image, and the expert that guides each step.",
            figures.strip_figure,
        )
    return found
