"""What is timed: rates between laps, of which the median counts."""

from __future__ import annotations

import pytest

from ablations.cells import speed
from ablations.cells.experts import Experts
from ablations.cells.samples import Samples
from ablations.cells.setup import Setup
from ablations.cells.speed import GuidanceSpeed, Stopwatch, SynthesisSpeed, TransferSpeed
from ablations.cells.synthesis import TrainingData
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ablations.settings.plugins import load_plugins
from ppap.diffusion.ddim import DDIM
from ppap.experts.adapters.adapter import full_adapter
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training


def never(cell: Cell) -> Artifact:
    raise AssertionError("nothing is read")


def test_what_is_counted_are_images_and_of_a_training_those_of_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PPAP_PLUGINS", "")
    load_plugins(["ablations.examples.stripes"])
    setup, laps = Setup.of(load_setting("stripes")), list[int]()
    monkeypatch.setattr(
        Stopwatch, "lap", lambda watch, count: (laps.append(count), watch.rates.append(1.0))
    )
    experts = Experts(
        setup, "nearest", NoiseRanges.equal(2), full_adapter(), Training(2, 5), TrainingData()
    )
    for cell, counted in (
        (TransferSpeed(experts), [8 * 5] * 3),
        (SynthesisSpeed(setup, DDIM(2), 4), [4] * 3),
        (GuidanceSpeed(Samples(setup, DDIM(2), (), 0, 3)), [3] * 3),
    ):
        laps.clear()
        cell.compute(never)
        assert laps == counted


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
