"""The benchmarks of kernels measure what they say: rehearsed where there is no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ppap_kernels.operations import PASSES, Problem, Way, problems
from torch import Tensor

from bench.kernels import timing
from bench.kernels.preparation import prepared

CPU = torch.device("cpu")


class Event:
    """As torch.cuda's, by a clock."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


def test_events_surround_every_call_and_the_cache_is_flushed_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(timing, "L2_BYTES", 16)
    zero = Tensor.zero_

    def flush(self: Tensor) -> Tensor:
        log.append("flush")
        return zero(self)

    monkeypatch.setattr(Tensor, "zero_", flush)

    def work() -> None:
        log.append("work")
        time.sleep(0.002)

    def other() -> None:
        log.append("other")

    found, peak = timing._by_events(work, other, CPU, 3)
    warm = ["work", "other"] * timing.WARM_UPS
    turn = ["flush", "other", "flush", "work", "flush", "work", "flush", "other"]
    assert log == [*warm, "synchronize", "work", *turn * 3, "synchronize"]
    assert len(found.own) == len(found.reference) == 3
    assert all(seconds >= 0.002 for seconds in found.own)
    assert peak == 2


def test_what_is_short_is_repeated_and_timed_by_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"quick": 0, "slow": 0}

    def quick() -> None:
        calls["quick"] += 1

    def slow() -> None:
        calls["slow"] += 1

    def clock(function: Callable[[], Any]) -> float:
        """0.1 ms for a quick call, 5 ms for a slow one."""
        before = dict(calls)
        function()
        return 1e-4 * (calls["quick"] - before["quick"]) + 5e-3 * (calls["slow"] - before["slow"])

    monkeypatch.setattr(timing, "clock", clock)
    pairs, peak = timing.pairs_of(quick, slow, CPU, 3)
    assert pairs.own == pytest.approx((1e-4,) * 3)
    assert pairs.reference == pytest.approx((5e-3,) * 3)
    assert calls == {"quick": 2 + 3 * 2 * 20, "slow": 2 + 3 * 2}
    assert pairs.ratio.median == pytest.approx(50)
    assert peak == 0


def test_every_case_of_a_gpu_is_there() -> None:
    names = {case.name for case in problems(CPU)}
    on_gpu = list(problems(torch.device("cuda")))
    assert {case.name for case in on_gpu} == names
    assert len(names) == 7
    for case in on_gpu:
        ways = {way.name for way in case.ways}
        assert {"ours", "ours, triton", "ours, torch", "torch eager"} <= ways
        if case.name in ("lora_linear", "grouped_lora_linear", "lora_conv"):
            assert "torch.compile" in ways
            assert any("floor" in way for way in ways)


def wrong(case: Problem) -> Way:
    return Way("ours", lambda t: case.reference(t) * 1.01)


@pytest.mark.parametrize("what", PASSES)
def test_a_red_gate_stops_the_timing(what: str) -> None:
    case = next(iter(problems(CPU)))
    _, gate = prepared(case, case.ways[0], torch.float32, what, CPU)
    gate()
    _, gate = prepared(case, wrong(case), torch.float32, what, CPU)
    with pytest.raises(AssertionError, match="is off by"):
        gate()


def test_operations_count_what_torch_counts() -> None:
    from bench.machine import Operations

    for case in problems(CPU):
        if case.name not in ("lora_linear", "lora_conv"):
            continue
        tensors: dict[str, Any] = case.make(torch.float32, CPU)
        with Operations() as counter:
            case.reference(tensors)
        assert counter.total == pytest.approx(case.flops, rel=1e-6), case.name
