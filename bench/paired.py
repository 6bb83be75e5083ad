"""Ways timed in turn, and what can be said of their ratios.

A round calls all ways in order and then in reverse: whatever drifts evenly during a round slows all
alike. A row's milliseconds and its ratio come from the same rounds, so that they agree.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = [
    "UNSTEADY",
    "Ceiling",
    "Interval",
    "Paired",
    "interleave",
    "median_interval",
    "round_means",
    "spread",
]

UNSTEADY = 0.15
"""Spread of rounds from which a machine is said to be unsteady."""
CONFIDENCE = 0.95
LEAST_ROUNDS = 5
"""From which there is an interval: the whole range of five encloses the median in 94 % of cases."""
Timed = TypeVar("Timed")


@dataclass(frozen=True)
class Interval:
    """A median and where it lies with a confidence of 95 % (of 94 % for five rounds)."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Rounds of two ways.

    Attributes:
        own: seconds of a call, one figure a round.
        reference: the reference's, in the same rounds.
    """

    own: tuple[float, ...]
    reference: tuple[float, ...]

    @classmethod
    def of_calls(cls, own: Sequence[float], reference: Sequence[float]) -> Paired:
        """From two calls of each in a round, whose mean stands for the round.

        Raises:
            ValueError: for calls that do not make whole rounds of both.
        """
        if len(own) != len(reference) or len(own) % 2 or not own:
            raise ValueError(
                f"a round is two calls of each way, got {len(own)} and {len(reference)} calls"
            )
        return cls(round_means(own), round_means(reference))

    @property
    def ratio(self) -> Interval:
        """How many times as fast as the reference: the median over rounds."""
        pairs = zip(self.reference, self.own, strict=True)
        return median_interval([theirs / ours for theirs, ours in pairs])

    def figures(self, places: int) -> dict[str, Any]:
        """The ratio, and its interval where there are rounds enough for one, for a record."""
        ratio = self.ratio
        found: dict[str, Any] = {"ratio": round(ratio.median, places)}
        if len(self.own) >= LEAST_ROUNDS:
            found["ratio_interval"] = [round(ratio.low, places), round(ratio.high, places)]
        return found

    @property
    def spread(self) -> float:
        """The larger of both ways' spreads."""
        return max(spread(self.own), spread(self.reference))


@dataclass(frozen=True)
class Ceiling:
    """Operations per second of a large convolution and of a large matrix product."""

    convolution: float
    product: float

    def share(self, convolutions: float, products: float, seconds: float) -> float:
        """Of the speed to be had: the time that the operations would take at both ceilings.

        Args:
            convolutions: operations in convolutions.
            products: operations in matrix products.
            seconds: that both took.
        """
        return (convolutions / self.convolution + products / self.product) / seconds


def interleave(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    timed: Callable[[Callable[[], Any]], Timed],
    there_and_back: bool = True,
) -> dict[str, list[Timed]]:
    """What ``timed`` gives for each call of each way.

    Args:
        ways: in the order in which a round calls them.
        rounds: how many.
        timed: calls a way and says how long it took.
        there_and_back: whether a round calls every way twice, in order and in reverse. Without it
            a round calls each once and every second round goes in reverse, for calls that are
            long: an even drift then moves the ratios of one round up and of the next one down.
    """
    order = list(ways)
    calls: dict[str, list[Timed]] = {name: [] for name in order}
    for turn in range(rounds * (2 if there_and_back else 1)):
        for name in order[::-1] if turn % 2 else order:
            calls[name].append(timed(ways[name]))
    return calls


def round_means(calls: Sequence[float]) -> tuple[float, ...]:
    """One figure a round, from two calls each."""
    return tuple((a + b) / 2 for a, b in zip(calls[::2], calls[1::2], strict=True))


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median, and order statistics that enclose it whatever the distribution.

    The k-th smallest and k-th largest of n enclose the distribution's median but for a chance of
    2 P(Binomial(n, 1/2) < k). The largest k that keeps the confidence is taken; with fewer than
    six values no k does for 95 %, and the whole range is given.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("no rounds: there is no median of nothing")
    ordered, n = sorted(values), len(values)
    k = 1
    while 2 * k < n and 2 * _binomial_below(k + 1, n) <= 1 - confidence:
        k += 1
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k])


def spread(values: Sequence[float]) -> float:
    """Distance of the quartiles, as a share of the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def _binomial_below(k: int, n: int) -> float:
    """P(X < k) for n tosses of a coin."""
    return sum(math.comb(n, i) for i in range(k)) / float(2**n)
