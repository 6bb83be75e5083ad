"""Ratios of interleaved rounds: what drifts cancels, and intervals hold what they promise."""

from __future__ import annotations

import random
from functools import partial

import pytest

from bench.paired import Ceiling, Paired, interleave, median_interval, round_means, spread


def in_turn(rounds: int, **options: bool) -> tuple[str, dict[str, list[int]]]:
    """Three ways, and the number of each call."""
    calls: list[str] = []

    def timed(function: object) -> int:
        function()  # type: ignore[operator]
        return len(calls)

    ways = {name: partial(calls.append, name) for name in "abc"}
    found = interleave(ways, rounds, timed, **options)
    return "".join(calls), found


def test_a_round_goes_through_all_ways_and_back() -> None:
    calls, found = in_turn(2)
    assert calls == "abccba" * 2
    assert found == {"a": [1, 6, 7, 12], "b": [2, 5, 8, 11], "c": [3, 4, 9, 10]}
    assert {round_means(own) for own in found.values()} == {(3.5, 9.5)}


def test_of_single_calls_every_second_round_goes_back() -> None:
    calls, found = in_turn(3, there_and_back=False)
    assert calls == "abccbaabc"
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_an_even_drift_leaves_the_ratio_alone() -> None:
    """A machine that slows by 1 % a call: calls in turn (A B A B) would be off by as much."""
    slow = [1.0 + 0.01 * call for call in range(28)]
    reference = [slow[i] * 3.0 for i in range(28) if i % 4 in (0, 3)]
    own = [slow[i] * 2.0 for i in range(28) if i % 4 in (1, 2)]
    found = Paired.of_calls(own, reference)
    assert found.ratio.median == pytest.approx(1.5, rel=1e-12)
    assert found.ratio.low == pytest.approx(found.ratio.high, rel=1e-12)


def test_a_machine_that_changes_its_speed_between_rounds_leaves_the_ratio_alone() -> None:
    speeds = [1.0, 1.0, 4.0, 4.0, 1.0, 1.0, 0.5, 0.5, 2.0, 2.0]
    found = Paired.of_calls([2 * s for s in speeds], [5 * s for s in speeds])
    assert (found.ratio.low, found.ratio.high) == (2.5, 2.5)
    assert found.own == (2.0, 8.0, 2.0, 1.0, 4.0)
    assert found.spread == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("count", "k"), [(1, 1), (2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (15, 4), (31, 10)]
)
def test_intervals_are_the_order_statistics_of_the_sign_test(count: int, k: int) -> None:
    """The ranks as tabled for the sign test at 5 %, two-sided."""
    values = [float(value) for value in range(1, count + 1)]
    random.Random(0).shuffle(values)
    found = median_interval(values)
    assert (found.low, found.high) == (k, count + 1 - k)
    assert found.median == (count + 1) / 2


def test_an_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """Of a skewed distribution: log-normal, whose median is 1."""
    draw = random.Random(1)
    hits = 0
    for _ in range(2000):
        found = median_interval([draw.lognormvariate(0, 1) for _ in range(15)])
        hits += found.low <= 1 <= found.high
    assert 0.95 <= hits / 2000 <= 0.99


@pytest.mark.parametrize(("rounds", "interval"), [(1, False), (4, False), (5, True), (9, True)])
def test_few_rounds_have_no_interval(rounds: int, interval: bool) -> None:
    figures = Paired((1.0,) * rounds, tuple(2.0 + n for n in range(rounds))).figures(2)
    assert figures["ratio"] == 2 + (rounds - 1) / 2
    assert ("ratio_interval" in figures) is interval
    if rounds == 5:
        assert figures["ratio_interval"] == [2, 6]


def test_spread_is_the_middle_half_over_the_median() -> None:
    assert spread([9.0, 10.0, 10.0, 11.0]) == pytest.approx(0.05)
    assert spread([10.0, 10.0, 10.0, 10.0, 99.0]) == 0  # one interruption is no unsteady machine
    assert spread([8.0, 8.0, 10.0, 12.0, 12.0]) == pytest.approx(0.4)
    assert spread([3.0]) == 0


def test_the_ceiling_is_that_of_the_operations_done() -> None:
    ceiling = Ceiling(convolution=100.0, product=200.0)
    assert ceiling.share(100, 0, 1.0) == 1
    assert ceiling.share(0, 100, 1.0) == 0.5
    assert ceiling.share(50, 100, 2.0) == 0.5


def test_calls_that_make_no_whole_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="two calls of each way, got 3 and 3"):
        Paired.of_calls([1.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="got 2 and 4"):
        Paired.of_calls([1.0] * 2, [1.0] * 4)
    with pytest.raises(ValueError, match="no rounds"):
        median_interval([])
