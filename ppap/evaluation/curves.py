"""Curves of score against distance: what one unit of an arm reaches, read by interpolation.

A curve's points are guidance scales. Between neighbouring scales it is taken to be straight in
score and in the logarithm of the distance; beyond its ends nothing is said. Distance may fall
before it rises, and score rise before it falls: where a curve passes a distance more than once,
its best score there counts, and where it passes a score more than once, its least distance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Curve", "common_distances", "common_scores"]

Floats = npt.NDArray[np.float64]
Segment = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Curve:
    """What one unit of an arm reaches over guidance scales.

    Attributes:
        scales: (K,) rising.
        distances: (K,) from the reference images, above 0.
        scores: (K,) by the judge.
        higher_is_better: of scores.
    """

    scales: Floats
    distances: Floats
    scores: Floats
    higher_is_better: bool

    @classmethod
    def of(
        cls,
        scales: Sequence[float],
        distances: Sequence[float],
        scores: Sequence[float],
        higher_is_better: bool = True,
    ) -> Curve:
        """A curve of points in any order.

        Raises:
            ValueError: for no points, unequal numbers, a scale twice, what is not finite, or a
                distance that is not above 0.
        """
        columns = [np.asarray(values, dtype=np.float64) for values in (scales, distances, scores)]
        if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
            raise ValueError("a curve has as many distances and scores as scales")
        if not len(scales) or len(set(scales)) < len(scales) or not (columns[1] > 0).all():
            raise ValueError("a curve has a point or more, each of another scale, distances > 0")
        if not all(np.isfinite(column).all() for column in columns):
            raise ValueError(
                "a curve's scales, distances and scores are finite; leave such points out"
            )
        order = np.argsort(columns[0])
        scales_up, along, reached = (column[order] for column in columns)
        return cls(scales_up, along, reached, higher_is_better)

    def score_at(self, distance: float) -> float:
        """The best score that the curve has at a distance; NaN where it does not reach it.

        Raises:
            ValueError: for a distance that is not above 0.
        """
        if not distance > 0:
            raise ValueError(f"distances are above 0, got {distance}")
        found = _crossings(self._points, math.log(distance))
        return self._best(found) if found else math.nan

    def distance_at(self, score: float) -> float:
        """The least distance at which the curve has a score; NaN where it does not reach it."""
        return math.exp(self.measure_at(score, [x for x, _ in self._points]))

    def measure_at(self, score: float, values: Sequence[float]) -> float:
        """Another measure of the points, where the curve has a score at the least distance.

        Args:
            score: that the curve is to have.
            values: (K,) of the points in order of their scales; straight between neighbours.

        Returns:
            NaN where the curve does not reach the score.
        """
        points = [(y, (x, z)) for (x, y), z in zip(self._points, values, strict=True)]
        distances, found = (
            _crossings([(y, both[which]) for y, both in points], score) for which in (0, 1)
        )
        return found[int(np.argmin(distances))] if found else math.nan

    def area(self, low: float, high: float) -> float:
        """Mean of :meth:`score_at` over the logarithm of the distance, from low to high.

        The area under the curve over its width: a score that can be compared with others.
        Exact: between its corners the best score is linear, so that its middle is its mean.

        Returns:
            NaN where part of the range is out of the curve's reach.

        Raises:
            ValueError: if the range is empty.
        """
        if not 0 < low < high:
            raise ValueError(f"expected a range of distances above 0, got {low} to {high}")
        if low < self.distances.min() or high > self.distances.max():
            return math.nan
        ends = math.log(low), math.log(high)
        inner = {x for x in self._corners() if ends[0] < x < ends[1]}
        edges = np.array(sorted({*ends, *inner}))
        middles = (edges[1:] + edges[:-1]) / 2
        scores = [self._best(_crossings(self._points, float(x))) for x in middles]
        return float(np.diff(edges) @ scores / (ends[1] - ends[0]))

    @property
    def _points(self) -> list[tuple[float, float]]:
        # math's logarithm, as of the distances asked for: NumPy's may differ in the last bit.
        return [(math.log(x), float(y)) for x, y in zip(self.distances, self.scores, strict=True)]

    def _best(self, scores: Iterable[float]) -> float:
        return max(scores) if self.higher_is_better else min(scores)

    def _corners(self) -> set[float]:
        """Logarithms of distances at which the best score may bend or jump."""
        segments = list(itertools.pairwise(self._points))
        crossed = (_meeting(a, b) for a, b in itertools.combinations(segments, 2))
        return {x for x, _ in self._points} | {x for x in crossed if x is not None}


def common_distances(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """The distances that every curve reaches, least and greatest; None if there are none."""
    return _common([curve.distances for curve in curves])


def common_scores(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """The scores that every curve reaches, least and greatest; None if there are none."""
    return _common([curve.scores for curve in curves])


def _common(values: Sequence[Floats]) -> tuple[float, float] | None:
    low = max(float(found.min()) for found in values)
    high = min(float(found.max()) for found in values)
    return (low, high) if low <= high else None


def _crossings(points: Sequence[tuple[float, float]], level: float) -> list[float]:
    """Every y at which the line through (x, y) points has x = level."""
    found = [y for x, y in points if x == level]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if min(x0, x1) < level < max(x0, x1):
            found.append(y0 + (y1 - y0) * (level - x0) / (x1 - x0))
    return found


def _meeting(first: Segment, second: Segment) -> float | None:
    """The x at which two segments' lines meet; None if they are parallel or upright."""
    (x0, y0), (x1, y1) = first
    (x2, y2), (x3, y3) = second
    if x0 == x1 or x2 == x3:
        return None
    slope, other = (y1 - y0) / (x1 - x0), (y3 - y2) / (x3 - x2)
    return None if slope == other else (y2 - y0 + slope * x0 - other * x2) / (slope - other)
