"""What is timed: rates between laps, of which the median counts."""

from __future__ import annotations

import pytest

from ablations.cells import speed
from ablations.cells.speed import Stopwatch


def test_a_rate_is_the_median_over_laps_and_a_start_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter((0.0, 100.0, 101.0, 103.0, 111.0))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    with Stopwatch() as watch:
        watch.start()  # what was before has warmed up
        for _ in range(3):
            watch.lap(8)
    assert watch.rates == [8.0, 4.0, 1.0]
    assert watch.metrics("images_per_second") == {
        "images_per_second": 4.0,
        "peak_memory_mib": watch.peak,
    }
    assert watch.peak > 0
