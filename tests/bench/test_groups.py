"""Ways of a group share their rounds: the reference is called once a round, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.conftest import selected_ways
from bench.groups import Group, Way, in_whole_calls
from bench.paired import Ceiling

SECONDS = {"reference": 6.0, "ours": 2.0, "other": 3.0}


class Bench:
    """Ways that log their calls, and a clock by which each takes its own time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.log: list[str] = []
        self.made: list[str] = []
        monkeypatch.setattr("bench.groups.clock", self.clock)
        monkeypatch.setattr("bench.groups.measure_ceiling", lambda: Ceiling(1000.0, 500.0))
        self.group = Group("work", self.make, memory=None, **options)

    def make(self, name: str) -> Way:
        self.made.append(name)
        return Way(partial(self.log.append, name), part=lambda: None)

    def clock(self, function: Callable[[], Any]) -> float:
        function()
        return SECONDS[self.log[-1]]


def test_a_round_goes_through_all_ways_and_back_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, rounds=5, images=12)
    rows = {way: bench.group.row(way, list(SECONDS)) for way in SECONDS}
    assert bench.log == ["reference", "ours", "other", "other", "ours", "reference"] * 5
    assert [rows[way]["ratio"] for way in SECONDS] == [1, 3, 2]
    assert rows["ours"]["ratio_interval"] == [3, 3]
    assert rows["ours"]["ms"] == 2000
    assert rows["other"]["reference_ms"] == 6000
    assert rows["ours"]["images_per_second"] == 6
    assert {row["rounds"] for row in rows.values()} == {5}


def test_long_calls_happen_once_a_round_and_every_second_round_in_reverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, rounds=3)
    bench.group.stopwatch = partial(in_whole_calls, timed=bench.clock)
    row = bench.group.row("ours", ["reference", "ours"])
    assert bench.log == ["reference", "ours", "ours", "reference", "reference", "ours"]
    assert (row["rounds"], row["ratio"]) == (3, 3)


def test_a_way_alone_is_timed_beside_the_reference_and_no_other_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch)
    assert bench.group.row("ours", ["ours"], rounds=2)["ratio"] == 3
    assert bench.made == ["reference", "ours"]
    assert bench.log == ["reference", "ours", "ours", "reference"] * 2


def test_rows_without_a_reference_have_times_and_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, reference=None)
    row = bench.group.row("ours", ["ours", "other"], rounds=2)
    assert (row["ms"], row["spread"]) == (2000, 0)
    assert not {"ratio", "ratio_interval", "reference_ms"} & set(row)
    assert bench.made == ["ours", "other"]


def test_a_way_that_is_wrong_is_not_timed_and_the_others_are() -> None:
    calls: list[str] = []

    def make(name: str) -> Way:
        def check() -> None:
            assert name != "wrong", "they disagree"

        return Way(partial(calls.append, name), check=check)

    group = Group("work", make, memory=None)
    selected = ["reference", "wrong", "ours"]
    assert group.row("ours", selected, rounds=1)["rounds"] == 1
    for _ in range(2):
        with pytest.raises(AssertionError, match="they disagree"):
            group.row("wrong", selected)
    assert set(calls) == {"reference", "ours"}


def test_nothing_is_timed_beside_a_wrong_reference() -> None:
    def make(name: str) -> Way:
        if name == "reference":
            raise ValueError("it cannot be made")
        return Way(lambda: pytest.fail("it was timed"), part=lambda: None)

    group = Group("work", make, memory=None)
    for way in ("ours", "reference"):
        with pytest.raises(ValueError, match="cannot be made"):
            group.row(way, ["reference", "ours"])


def test_operations_are_those_of_a_part_as_often_as_there_are_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, counted = torch.ones(2, 5), []

    def product() -> None:
        counted.append("once")
        a @ a.t()  # 40 operations

    def stopwatch(
        ways: Mapping[str, Callable[[], Any]], rounds: int
    ) -> dict[str, tuple[float, ...]]:
        return dict.fromkeys(ways, (2.0,) * rounds)

    monkeypatch.setattr("bench.groups.measure_ceiling", lambda: Ceiling(1e9, 500.0))
    group = Group(
        "work", lambda name: Way(lambda: None, counted=product), parts=4, rounds=2,
        stopwatch=stopwatch, memory=None,
    )  # fmt: skip
    rows = [group.row(way, ["reference", "ours"]) for way in ("reference", "ours")]
    assert counted == ["once"]
    for row in rows:
        assert row["of_ceiling"] == 4 * 40 / 2.0 / 500.0
        assert row["gflops"] == round(4 * 40 / 2.0 / 1e9, 2)
        assert row["convolution_gflops"] == 1


def test_memory_is_that_of_a_part_measured_before_the_rounds() -> None:
    log: list[str] = []

    def memory(function: Callable[[], Any]) -> tuple[float, float]:
        function()
        return 110.0, 100.0

    way = Way(partial(log.append, "run"), part=partial(log.append, "part"))
    row = Group("work", lambda name: way, reference=None, memory=memory).row("ours", ["ours"], 1)
    assert log == ["part", "part", "run", "run"]
    assert (row["peak_mib"], row["peak_above_resident_mib"]) == (110, 10)


def test_what_a_run_has_selected_of_a_group() -> None:
    """Tests of one function with the same parameters but for the way."""

    def item(function: str, **parameters: object) -> SimpleNamespace:
        return SimpleNamespace(function=function, callspec=SimpleNamespace(params=parameters))

    items = [
        item("step", way="ours", steps="resnet"),
        item("step", way="ours", steps="vit"),
        SimpleNamespace(function="plain test"),
        item("step", way="reference", steps="vit"),
        item("call", way="other", steps="vit"),
        item("step", way="half", steps="resnet"),
    ]
    assert selected_ways(items[0], items) == ["ours", "half"]
    assert selected_ways(items[3], items) == ["ours", "reference"]
