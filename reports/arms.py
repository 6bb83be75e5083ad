"""Arms and claims: the curves of a way to guide over its units, and what is said of two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from ppap.evaluation.curves import Curve
from reports.schema import POINT_MEASURES

__all__ = ["Arm", "Claim"]

Record = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Arm:
    """A way to guide, measured over scales by several units.

    Attributes:
        key: of its record.
        method: its name.
        predictor: what guides; ``"none"`` if nothing does.
        sampler: how samples are drawn.
        metric: what the score is.
        higher_is_better: of the score.
        unbounded: whether the best score is still at the largest scale, however often that was
            doubled.
        experts: how many; None where the record does not say.
        supervision: labelled, data-free or none.
        trained_steps: of all experts together.
        units: training seeds, or blocks of sampling seeds.
        points: a line for each unit and scale: unit, scale, samples, score, pixel_fid and the
            other figures of a point (NaN if not measured), and ``gap``: by how much the guide
            finds its samples better than the judge does.
        record: as it is.
    """

    key: str
    method: str
    predictor: str
    sampler: str
    metric: str
    higher_is_better: bool
    unbounded: bool
    experts: int | None
    supervision: str | None
    trained_steps: int | None
    units: tuple[int, ...]
    points: pd.DataFrame
    record: Record

    @classmethod
    def of(cls, record: Record) -> Arm:
        """From a record of kind ``curve``."""
        measured = ("score", "pixel_fid", *POINT_MEASURES)
        lines = [
            {name: point[name] for name in ("unit", "scale", "samples")}
            | {name: _number(point.get(name)) for name in measured}
            for point in record["points"]
        ]
        points = pd.DataFrame(lines).sort_values(["unit", "scale"], ignore_index=True)
        better = 1 if record["higher_is_better"] else -1
        points["gap"] = better * (points["belief"] - points["score"])
        return cls(
            **{n: record[n] for n in ("key", "method", "predictor", "sampler", "metric")},
            higher_is_better=record["higher_is_better"],
            unbounded=record.get("unbounded", False),
            **{n: record.get(n) for n in ("experts", "supervision", "trained_steps")},
            units=tuple(record["units"]),
            points=points,
            record=record,
        )

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """The curve of each unit."""
        return {
            int(str(unit)): Curve.of(
                *(part[name].tolist() for name in ("scale", "pixel_fid", "score")),
                self.higher_is_better,
            )
            for unit, part in self.points.groupby("unit")
        }

    def measure_at(self, unit: int, score: float, measure: str) -> float:
        """A unit's ``saturation``, ``recall`` or other measure of its points, at a score.

        Returns:
            NaN where the unit does not reach the score, or the measure was not taken.
        """
        values = self.points.loc[self.points["unit"] == unit, measure]
        return self.curves[unit].measure_at(score, values.tolist())

    def best_scores(self, largest: float = math.inf) -> dict[int, float]:
        """Each unit's score at the scale that is best for the others.

        A unit that chose for itself would choose its own luck, an arm of more scales more of it.

        Args:
            largest: larger scales are left out of account.
        """
        chosen = {unit: self.best_scale(largest, unit) for unit in self.units}
        return {unit: self.scores(scale)[unit] for unit, scale in chosen.items()}

    @property
    def best_points(self) -> pd.DataFrame:
        """A line for each unit, at :meth:`best_scale`."""
        return self.points[self.points["scale"] == self.best_scale()]

    @property
    def scales(self) -> list[float]:
        """Guidance scales, rising; every unit was measured at each."""
        return [float(scale) for scale in sorted(self.points["scale"].unique())]

    def scores(self, scale: float) -> dict[int, float]:
        """Each unit's score at a scale that was measured."""
        part = self.points[self.points["scale"] == scale]
        return dict(zip(part["unit"], part["score"], strict=True))

    def best_scale(self, largest: float = math.inf, without: int | None = None) -> float:
        """The scale whose score is best on average over units; the smaller of equals.

        Args:
            largest: larger scales are left out of account.
            without: a unit that is left out of account, if it is not the only one.
        """
        others = self.points[self.points["unit"] != without]
        means = (self.points if others.empty else others).groupby("scale")["score"].mean()
        means = means[means.index <= largest]
        return float(str(means.idxmax() if self.higher_is_better else means.idxmin()))


@dataclass(frozen=True)
class Claim:
    """A sentence that can be true or false, and which curves decide.

    Attributes:
        key: of its record.
        name: of the claim.
        predictor: whose curves are compared.
        statement: one sentence.
        source: who says so.
        ours: method.
        theirs: method that ours is compared with.
        family: of claims of one sweep and predictor that are corrected together.
        quantity: what is compared: one of :data:`reports.schema.QUANTITIES`.
        expected: what the difference, ours less theirs, is if the statement is true: greater,
            less or equivalent.
        margin: the smallest difference that matters; None where none is stated.
        at: the distance or score to match at; None for the middle of what both arms reach.
        sampler: of both arms; None where each method has curves with one sampler only.
        comparisons: claims of the family, those that were not asked for among them; None counts
            those that there are.
    """

    key: str
    name: str
    predictor: str
    statement: str
    source: str
    ours: str
    theirs: str
    family: str
    quantity: str
    expected: str
    margin: float | None
    at: float | None
    sampler: str | None
    comparisons: int | None = None

    @classmethod
    def of(cls, record: Record) -> Claim:
        """From a record of kind ``claim``."""
        told = ("key", "predictor", "statement", "source", "ours", "theirs", "family")
        return cls(
            name=record["method"],
            **{name: record[name] for name in (*told, "quantity", "expected")},
            **{name: record.get(name) for name in ("margin", "at", "sampler", "comparisons")},
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
