"""What a sweep is, and which there are."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from ablations.cells.curves import Claim, Curve
from ablations.cells.intervals import PairedTest
from ablations.cells.pictures import Grid, Panel
from ablations.cells.results import (
    Axis,
    Comparison,
    NoiseCurve,
    PartialComparison,
    Result,
    Row,
    TradeoffPoint,
)
from ablations.cells.samples import sampler_name
from ablations.errors import UserError
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import QUALITY
from reports.metrics import METRICS
from reports.schema import is_on_scale

__all__ = ["SWEEPS", "Sweep", "is_row", "sweep"]

Build = Callable[[Lab], Iterator[Result]]
Scale = Literal["linear", "log", "category"]
Figure = Literal["lines", "points", "pareto", "none"]
RESERVED = ("headline", "all")
"""What the command line calls several sweeps."""


@dataclass(frozen=True)
class Sweep:
    """A table or figure: its cells, and how the reports show them.

    Attributes:
        name: as on the command line.
        function: yields the result cells.
        axes: what is varied, and on which scale it is drawn; names as :meth:`Lab.row` has them.
        metrics: columns of the table, in order.
        figure: how rows are drawn.
        headline: whether it is part of the default run.
        needs: tasks that a setting must have.
        tunes: whether it chooses what a setting with published hyper-parameters has fixed.
    """

    name: str
    function: Build
    axes: Mapping[str, Scale]
    metrics: tuple[str, ...]
    figure: Figure
    headline: bool
    needs: tuple[str, ...] = ()
    tunes: bool = False

    @property
    def title(self) -> str:
        """One line."""
        return (self.function.__doc__ or self.name).splitlines()[0].removesuffix(".")

    def build(self, lab: Lab) -> Iterator[Result]:
        """The sweep's result cells: its rows, and their differences to the reference row.

        If the lab is for some tasks only, what these guide. If it is for some rows only, these and
        the rows that they are compared with, and the claims that are made of what is left.

        Raises:
            UserError: if two rows cannot be told apart, or one has an axis that is not declared,
                or rows would be compared with several.
        """
        every = self.function(replace(lab, sweep=self.name))
        results = [result for result in every if lab.asked_for(result.about.predictor)]
        rows = [result for result in results if isinstance(result, Row)]
        arms = [result for result in results if isinstance(result, Curve)]
        self._check_labels(rows)
        self._check_labels(arms)
        self._check_one_a_label(results)
        self._check_axes(results)
        self._check_references(rows)
        # Of some rows alone a claim comes with its curves, and not by what it is called.
        named = [cell for cell in results if not (lab.rows and isinstance(cell, Claim))]
        kept = {id(cell) for cell in named if is_row(cell.about.method, lab.rows)}
        groups: tuple[list[Row] | list[Curve], ...] = (rows, arms)
        for alike in groups:
            families = {_family(cell) for cell in alike if id(cell) in kept}
            kept |= {id(c) for c in alike if c.about.reference and _family(c) in families}
        whose = {(arm.about.predictor, arm.about.method) for arm in arms if id(arm) in kept}
        kept |= {
            id(claim)
            for claim in results
            if isinstance(claim, Claim)
            and {(claim.about.predictor, side) for side in (claim.ours, claim.theirs)} <= whose
        }
        sizes = Counter(_claimed(claim) for claim in results if isinstance(claim, Claim))
        for result in results:
            if id(result) not in kept:
                continue
            if isinstance(result, Claim):
                yield replace(result, comparisons=sizes[_claimed(result)])
            else:
                yield result
        yield from _comparisons(rows, kept)

    def _check_labels(self, cells: list[Row] | list[Curve]) -> None:
        """Refuse two results of one label: of their records one would replace the other."""
        told = Counter((*_family(cell), cell.about.method, cell.about.axes) for cell in cells)
        if twice := [(predictor, label) for (predictor, _, label, _), n in told.items() if n > 1]:
            predictor, label = twice[0]
            raise UserError(
                f"sweep {self.name} has two rows {label!r} of the predictor {predictor}",
                "give each a label of its own, or axes that tell them apart",
            )

    def _check_one_a_label(self, cells: list[Result]) -> None:
        """Refuse pictures, points or curves of noise of two rows that axes alone tell apart."""
        seen: dict[tuple[type, str, str, str], tuple[Axis, ...]] = {}
        for cell in cells:
            if not isinstance(cell, Grid | Panel | TradeoffPoint | NoiseCurve):
                continue
            about = cell.about
            whose = (type(cell), about.predictor, _sampler_of(cell), about.method)
            if seen.setdefault(whose, about.axes) != about.axes:
                raise UserError(
                    f"sweep {self.name} has pictures, trade-offs or accuracies on noise of several "
                    f"rows {about.method!r} of the predictor {about.predictor}, of which records "
                    "would keep one",
                    "give the rows labels of their own",
                )

    def _check_axes(self, cells: list[Result]) -> None:
        """Refuse values that no table and no figure would show."""
        for cell in cells:
            for name, value in cell.about.axes:
                if name not in self.axes:
                    raise UserError(
                        f"row {cell.about.method!r} of sweep {self.name} has an axis {name}, "
                        "which the sweep does not declare",
                        f'declare it: @sweep("{self.name}", axes={{"{name}": ...}})',
                    )
                if not is_on_scale(value, self.axes[name]):
                    raise UserError(
                        f"row {cell.about.method!r} of sweep {self.name} has {value!r} on the axis "
                        f"{name}, whose scale is {self.axes[name]}",
                        "give it a number (above 0, if logarithmic), or make the axis a category",
                    )

    def _check_references(self, rows: list[Row]) -> None:
        """Refuse several references of a family: a table has one difference for each row."""
        families: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in rows:
            families[_family(row)] += [row.about.method] * row.about.reference
        for (predictor, sampler), labels in families.items():
            if len(labels) > 1:
                raise UserError(
                    f"sweep {self.name} has {len(labels)} reference rows of the predictor "
                    f"{predictor} and sampler {sampler}: {', '.join(labels)}",
                    "compare all rows with one of them, or divide them into sweeps",
                )
        for reference in [row for row in rows if row.about.reference]:
            drawn = _counts(reference)
            for row in [row for row in rows if _family(row) == _family(reference)]:
                if _counts(row) != drawn:
                    raise UserError(
                        f"sweep {self.name} compares the row {row.about.method!r}, of "
                        f"{sum(_counts(row))} samples, with {reference.about.method!r}, of "
                        f"{sum(drawn)}, and differences are of pairs",
                        "draw as many of both, or make none of them a reference",
                    )

    def record(self, lab: Lab) -> dict[str, Any]:
        """What the reports need to know of the sweep."""
        text = " ".join((self.function.__doc__ or "").split("\n", 1)[-1].split())
        return {
            "kind": "sweep",
            "key": f"sweep-{self.name}",
            "sweep": self.name,
            "setting": lab.setting.name,
            "budget": lab.budget_name,
            "title": self.title,
            "description": text,
            "axes": list(self.axes),
            "scales": dict(self.axes),
            "metrics": list(self.metrics),
            "figure": self.figure,
            "headline": self.headline,
        }


SWEEPS: dict[str, Sweep] = {}


def sweep(
    name: str,
    axes: Mapping[str, Scale] | None = None,
    metrics: tuple[str, ...] = QUALITY,
    figure: Figure = "points",
    headline: bool = False,
    needs: tuple[str, ...] = (),
    tunes: bool = False,
) -> Callable[[Build], Build]:
    """Make a function a sweep; see :class:`Sweep` for the arguments.

    Raises:
        UserError: if a function of another module has that name already, no file can be called so,
            or a figure, scale or metric is none.
    """
    if name in RESERVED or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"a sweep cannot be called {name!r}", "take letters, digits, '-', '_' and '.'"
        )
    for what, value, known in (
        ("figure", figure, get_args(Figure)),
        *(("scale", scale, get_args(Scale)) for scale in (axes or {}).values()),
        *(("metric", metric, METRICS) for metric in metrics),
    ):
        if value not in known:
            raise UserError(
                f"sweep {name} has an unknown {what} {value!r}", f"choose from {', '.join(known)}"
            )

    def register(function: Build) -> Build:
        if name in SWEEPS and SWEEPS[name].function.__module__ != function.__module__:
            raise UserError(
                f"{SWEEPS[name].function.__module__} has a sweep {name} already", "choose another"
            )
        SWEEPS[name] = Sweep(name, function, axes or {}, metrics, figure, headline, needs, tunes)
        return function

    return register


def is_row(label: str, rows: tuple[str, ...]) -> bool:
    """Whether a row's label is among these, or fits one with ``*``; any is if there are none."""
    return not rows or any(row == label or fnmatchcase(label, row) for row in rows)


def _counts(row: Row) -> tuple[int, ...]:
    """Samples of each seed."""
    return tuple(score.samples.count for score in row.figures.scores)


def _sampler_of(cell: Grid | Panel | TradeoffPoint | NoiseCurve) -> str:
    """As the cell's record tells it; an accuracy on noise has none."""
    if isinstance(cell, NoiseCurve):
        return ""
    samples = cell.score.samples if isinstance(cell, TradeoffPoint) else cell.samples
    return sampler_name(samples.sampler)


def _family(row: Row | Curve) -> tuple[str, str]:
    return row.about.predictor, row.sampler


def _claimed(claim: Claim) -> tuple[str, str]:
    return claim.about.predictor, claim.family


def _comparisons(rows: list[Row], kept: set[int]) -> Iterator[Comparison]:
    """Every row that is kept against the reference row of its predictor and sampler."""
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        families[_family(row)].append(row)
    for family in families.values():
        for reference in [row for row in family if row.about.reference]:
            every = [row for row in family if row is not reference]
            others = [row for row in every if id(row) in kept]
            tests = tuple(PairedTest(row.setup, row.figures, reference.figures) for row in others)
            left_out = len(every) - len(others)
            for place, row in enumerate(others):
                common = row.setup, row.about, row.key, reference.key, tests, place
                if left_out:
                    yield PartialComparison(*common, left_out)
                else:
                    yield Comparison(*common)
