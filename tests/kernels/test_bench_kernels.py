"""The benchmarks of kernels measure what they say: rehearsed where there is no GPU."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernels import timing
from bench.kernels.operations import PASSES, Case, Way, cases
from bench.kernels.test_kernels import prepared

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

    found = timing._by_events(work, CPU, 6)
    warm = ["work"] * timing.WARM_UPS
    assert log == [*warm, "synchronize", "work", *["flush", "work"] * 6, "synchronize"]
    assert 2 <= found.low <= found.median <= found.high
    assert found.peak_mib == 2


def test_every_case_of_a_gpu_is_there() -> None:
    names = {case.name for case in cases(CPU)}
    on_gpu = list(cases(torch.device("cuda")))
    assert {case.name for case in on_gpu} == names
    assert len(names) == 7
    for case in on_gpu:
        ways = {way.name for way in case.ways}
        assert "torch eager" in ways
        if case.name in ("lora_linear", "grouped_lora_linear", "lora_conv"):
            assert {"ours", "ours, triton", "ours, torch", "torch.compile"} <= ways
            assert any("floor" in way for way in ways)


def wrong(case: Case) -> Way:
    return Way("ours", lambda t: case.reference(t) * 1.01)


@pytest.mark.parametrize("what", PASSES)
def test_a_red_gate_stops_the_timing(what: str) -> None:
    case = next(iter(cases(CPU)))
    _, gate = prepared(case, case.ways[0], torch.float32, what, CPU)
    gate()
    _, gate = prepared(case, wrong(case), torch.float32, what, CPU)
    with pytest.raises(AssertionError, match="is off by"):
        gate()


def test_operations_count_what_torch_counts() -> None:
    from bench.conftest import Operations

    for case in cases(CPU):
        if case.name not in ("lora_linear", "lora_conv"):
            continue
        tensors: dict[str, Any] = case.make(torch.float32, CPU)
        with Operations() as counter:
            case.reference(tensors)
        assert counter.total == pytest.approx(case.flops, rel=1e-6), case.name
