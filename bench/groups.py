"""Ways of doing the same thing: prepared, checked and timed together, in one set of rounds.

The reference is timed once a round, and not once for each way that is compared with it. The first
test of a group that asks for a row has the whole group measured: those of its ways that this run
has selected, and the reference.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.machine import Operations, clock, measure_ceiling, peak_memory
from bench.paired import Ceiling, Paired, interleave, median_interval, round_means, spread

__all__ = ["Group", "Stopwatch", "Way", "in_whole_calls", "there_and_back"]

Stopwatch = Callable[[Mapping[str, Callable[[], Any]], int], Mapping[str, tuple[float, ...]]]
"""(ways, rounds) -> seconds of each way, a figure a round."""
PeakMemory = Callable[[Callable[[], Any]], tuple[float, float]]


@dataclass(frozen=True)
class Way:
    """One way of doing what its group is about.

    Attributes:
        run: what is timed.
        part: a share of ``run`` that uses as much memory and repeats in it, such as one batch of
            several; by default all of it. It warms the way up and shows its memory.
        check: raises AssertionError if the way's result is not the reference's. It calls the way
            at the shapes of ``run``, and so warms it up.
        counted: does the operations of ``part`` in eager torch, where they can be counted.
    """

    run: Callable[[], Any]
    part: Callable[[], Any] | None = None
    check: Callable[[], object] | None = None
    counted: Callable[[], Any] | None = None


def there_and_back(
    ways: Mapping[str, Callable[[], Any]], rounds: int
) -> Mapping[str, tuple[float, ...]]:
    """Rounds of two calls a way: all in order, then all in reverse."""
    return {name: round_means(own) for name, own in interleave(ways, rounds, clock).items()}


def in_whole_calls(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    timed: Callable[[Callable[[], Any]], float] = clock,
) -> Mapping[str, tuple[float, ...]]:
    """Rounds of one call a way, every second one in reverse: for calls that take seconds."""
    calls = interleave(ways, rounds, timed, there_and_back=False)
    return {name: tuple(own) for name, own in calls.items()}


class Group:
    """Ways that are timed together.

    Args:
        name: what they do.
        make: prepares a way by its name. Ways that a run has not selected are never made.
        reference: what ratios are to; None for rows without a ratio.
        images: of one run.
        parts: how many times a way's ``part`` happens in its ``run``.
        rounds: at least five where a ratio is shown.
        stopwatch: times all ways in turn.
        memory: MiB at the peak of a call, and before it; None if it is not to be measured.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str], Way],
        *,
        reference: str | None = "reference",
        images: int = 0,
        parts: int = 1,
        rounds: int = 9,
        stopwatch: Stopwatch = there_and_back,
        memory: PeakMemory | None = peak_memory,
    ) -> None:
        self.name = name
        self.make = make
        self.reference = reference
        self.images, self.parts, self.rounds = images, parts, rounds
        self.stopwatch, self.memory = stopwatch, memory
        self._ways: dict[str, Way] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._wrong: dict[str, Exception] = {}

    def row(self, way: str, selected: Iterable[str], rounds: int | None = None) -> dict[str, Any]:
        """A way's figures, from the rounds of all that is selected.

        Args:
            way: which.
            selected: all ways of this group that this run asks for.
            rounds: instead of the group's own number.

        Raises:
            Exception: whatever preparing or checking this way or the reference has raised. A way
                that is wrong is not timed, and the others are.
        """
        if way not in self._rows and way not in self._wrong:
            names = dict.fromkeys([self.reference, *selected, way])
            self._measure([name for name in names if name is not None], rounds or self.rounds)
        for name in (self.reference, way):
            if name in self._wrong:
                raise self._wrong[name]
        return self._rows[way]

    def close(self) -> None:
        """Let go of what the ways hold."""
        self._ways.clear()
        gc.collect()

    def _measure(self, names: Iterable[str], rounds: int) -> None:
        for name in names:
            try:
                self._ways[name] = self._prepared(name)
            except Exception as error:  # noqa: BLE001 the tests of the way raise it
                self._wrong[name] = error
        if self.reference in self._wrong:
            return
        ways = {name: way for name, way in self._ways.items() if name not in self._wrong}
        memory = {name: self._memory(way) for name, way in ways.items()}
        counts = _counts(ways)
        ceiling = measure_ceiling() if counts else None
        seconds = self.stopwatch({name: way.run for name, way in ways.items()}, rounds)
        for name in ways:
            self._rows[name] = self._times(seconds, name) | memory[name]
            if ceiling is not None:
                self._rows[name] |= self._share(name, counts.get(name), ceiling)

    def _prepared(self, name: str) -> Way:
        way = self.make(name)
        (way.check or way.part or way.run)()
        return way

    def _memory(self, way: Way) -> dict[str, Any]:
        if self.memory is None:
            return {}
        peak, before = self.memory(way.part or way.run)
        return {"peak_mib": round(peak, 1), "peak_above_resident_mib": round(peak - before, 1)}

    def _times(self, seconds: Mapping[str, tuple[float, ...]], name: str) -> dict[str, Any]:
        own = seconds[name]
        middle = median_interval(own).median
        found: dict[str, Any] = {"way": name, "rounds": len(own), "ms": round(middle * 1e3, 6)}
        if self.images:
            found["images_per_second"] = round(self.images / middle, 2)
        if self.reference is None:
            return found | {"spread": round(spread(own), 4)}
        pairs = Paired(own, seconds[self.reference])
        return found | {
            "reference_ms": round(median_interval(pairs.reference).median * 1e3, 6),
            **pairs.figures(4),
            "spread": round(pairs.spread, 4),
        }

    def _share(self, name: str, counted: Operations | None, ceiling: Ceiling) -> dict[str, Any]:
        found: dict[str, Any] = {
            "convolution_gflops": round(ceiling.convolution / 1e9, 1),
            "product_gflops": round(ceiling.product / 1e9, 1),
        }
        if counted is None:
            return found
        seconds = self._rows[name]["ms"] / 1e3 / self.parts
        share = ceiling.share(counted.convolutions, counted.products, seconds)
        return found | {
            "gflops": round(counted.total / seconds / 1e9, 2),
            "of_ceiling": round(share, 3),
        }


def _counts(ways: Mapping[str, Way]) -> dict[str, Operations]:
    """Operations of each way's part; what several ways share is counted once."""
    counts: dict[Callable[[], Any], Operations] = {}
    for way in ways.values():
        if way.counted is not None and way.counted not in counts:
            with Operations() as counts[way.counted]:
                way.counted()
    return {name: counts[way.counted] for name, way in ways.items() if way.counted is not None}
