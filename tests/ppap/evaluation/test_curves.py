"""Curves are read by interpolation, exactly, and not beyond their ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppap.evaluation.curves import Curve, common_distances, common_scores

E = math.e


def line(slope: float, high: float = 4.0, higher: bool = True) -> Curve:
    """A score that rises by the slope with the logarithm of the distance, from 0 on."""
    logs = np.array([0.0, 1.0, high])
    return Curve.of([1, 2, 4], np.exp(logs).tolist(), (slope * logs).tolist(), higher)


def test_a_line_is_a_line() -> None:
    curve = line(0.1)
    assert curve.score_at(E**2.5) == pytest.approx(0.25)
    assert curve.distance_at(0.25) == pytest.approx(E**2.5)
    assert curve.area(E, E**3) == pytest.approx(0.2)
    assert curve.area(1.0, E**4) == pytest.approx(0.2)


def test_the_corners_are_the_points() -> None:
    curve = Curve.of([1, 2, 4], [1.5, 3.7, 11.3], [0.2, 0.9, 0.6])
    assert [curve.score_at(d) for d in (1.5, 3.7, 11.3)] == [0.2, 0.9, 0.6]
    assert curve.distance_at(0.9) == pytest.approx(3.7)


def test_a_parabola_is_read_ever_better() -> None:
    """y = 1 - (x - 1)², whose mean over 0..2 is 2/3: chords fall short by h²/6."""
    for points in (3, 9, 33):
        x = np.linspace(0, 2, points)
        curve = Curve.of(range(points), np.exp(x).tolist(), (1 - (x - 1) ** 2).tolist())
        step = 2 / (points - 1)
        assert curve.area(1.0, E**2) == pytest.approx(2 / 3 - step**2 / 6)
        # Between points a chord is below by at most (h / 2)².
        for inner in (0.3, 1.0, 1.71):
            short = 1 - (inner - 1) ** 2 - curve.score_at(math.exp(inner))
            assert -1e-12 <= short <= step**2 / 4 + 1e-12


def test_nothing_is_said_beyond_the_ends() -> None:
    curve = line(0.1)
    assert math.isnan(curve.score_at(0.99))
    assert math.isnan(curve.score_at(E**4 * 1.001))
    assert math.isnan(curve.distance_at(-0.001))
    assert math.isnan(curve.distance_at(0.41))
    assert math.isnan(curve.area(0.5, E))
    assert math.isnan(curve.area(E, E**5))
    with pytest.raises(ValueError, match="range"):
        curve.area(E, E)
    for distance in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="distances are above 0"):
            curve.score_at(distance)


def test_a_curve_that_collapses_has_a_score_twice_and_the_least_distance_counts() -> None:
    curve = Curve.of([1, 2, 4], [1.0, E, E**2], [0.0, 1.0, 0.5])
    assert curve.distance_at(0.5) == pytest.approx(E**0.5)
    assert curve.distance_at(0.75) == pytest.approx(E**0.75)


def hook(higher: bool = True) -> Curve:
    """Distance falls from e to 1 while the score rises to 0.5, then both rise to e², 0.9."""
    sign = 1 if higher else -1
    scores = [sign * score for score in (0.1, 0.5, 0.9)]
    return Curve.of([1, 2, 4], [E, 1.0, E**2], scores, higher)


@pytest.mark.parametrize("higher", [True, False])
def test_a_curve_that_goes_back_in_distance_counts_with_its_best_branch(higher: bool) -> None:
    sign, curve = (1 if higher else -1), hook(higher)
    assert curve.score_at(E) == pytest.approx(sign * 0.7)
    assert curve.score_at(E**0.5) == pytest.approx(sign * 0.6)
    assert curve.score_at(1.0) == pytest.approx(sign * 0.5)
    assert curve.area(1.0, E**2) == pytest.approx(sign * 0.7), "the lower branch has no part"


def test_branches_that_cross_are_integrated_exactly() -> None:
    """Out with 1 - x, back with 0.2 + x: the better of them changes at x = 0.4."""
    curve = Curve.of([1, 2, 3, 4], [1, E, E, 1], [1.0, 0.0, 1.2, 0.2])
    area = (0.4 * (1.0 + 0.6) + 0.6 * (0.6 + 1.2)) / 2
    assert curve.area(1.0, E) == pytest.approx(area)
    grid = np.exp((np.arange(2000) + 0.5) / 2000)
    assert area == pytest.approx(np.mean([curve.score_at(d) for d in grid]), abs=1e-6)


def test_a_scale_that_moves_nothing_but_the_score_leaves_both_scores_at_its_distance() -> None:
    curve = Curve.of([1, 2], [2.0, 2.0], [0.3, 0.6])
    assert curve.score_at(2.0) == 0.6
    assert curve.distance_at(0.45) == pytest.approx(2.0)
    assert math.isnan(curve.score_at(2.01))


def test_a_point_is_a_curve_that_reaches_itself() -> None:
    point = Curve.of([0], [1.8], [0.1])
    assert point.score_at(1.8) == 0.1
    assert math.isnan(point.score_at(1.9))
    assert point.distance_at(0.1) == pytest.approx(1.8)


def test_what_all_curves_reach() -> None:
    near, far = line(0.1, 3.0), Curve.of([1, 2], [E, E**5], [0.2, 0.6])
    assert common_distances([near, far]) == pytest.approx((E, E**3))
    assert common_scores([near, far]) == pytest.approx((0.2, 0.3))
    assert common_distances([near, Curve.of([1], [E**4], [0.0])]) is None
    touching = Curve.of([1, 2], [near.distances[-1], E**5], [0.2, 0.6])
    assert common_distances([near, touching]) == (near.distances[-1], near.distances[-1])


def test_scaling_distances_and_shifting_scores_moves_a_curve_as_a_whole() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        distances, scores = draw.uniform(1, 9, 6), draw.uniform(0, 1, 6)
        curve = Curve.of(range(6), distances.tolist(), scores.tolist())
        moved = Curve.of(range(6), (7 * distances).tolist(), (scores + 0.5).tolist())
        low, high = float(distances.min()) * 1.01, float(distances.max()) * 0.99
        assert moved.area(7 * low, 7 * high) == pytest.approx(0.5 + curve.area(low, high))
        middle = math.sqrt(low * high)
        assert moved.score_at(7 * middle) == pytest.approx(0.5 + curve.score_at(middle))


@pytest.mark.parametrize(
    ("scales", "distances", "scores"),
    [
        ([], [], []),
        ([1, 1], [1, 2], [0, 1]),
        ([1, 2], [0, 2], [0, 1]),
        ([1, 2], [1], [0, 1]),
        ([1, 2, 3], [1, 2, 3], [0, math.nan, 1]),
        ([1, 2, 3], [1, math.inf, 3], [0, 0.5, 1]),
        ([1, math.nan, 3], [1, 2, 3], [0, 0.5, 1]),
    ],
)
def test_what_is_no_curve_is_refused(
    scales: list[float], distances: list[float], scores: list[float]
) -> None:
    with pytest.raises(ValueError, match="curve"):
        Curve.of(scales, distances, scores)
