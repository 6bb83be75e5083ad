"""How long a kernel takes: events and a cold L2 on a GPU, a clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Timing", "device", "time_it"]

L2_BYTES = 256 * 2**20
"""Written between repetitions; more than any GPU's second-level cache."""
WARM_UPS, REPETITIONS = 5, 50


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated calls.

    Attributes:
        median: of all.
        low: first of five parts.
        high: last of five parts.
        peak_mib: device memory above what was allocated before; 0 on a CPU.
    """

    median: float
    low: float
    high: float
    peak_mib: float

    @classmethod
    def of(cls, milliseconds: list[float], peak_mib: float = 0.0) -> Timing:
        low, *_, high = statistics.quantiles(milliseconds, n=5)
        return cls(statistics.median(milliseconds), low, high, peak_mib)


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def time_it(function: Callable[[], Any], on: torch.device, repetitions: int = 0) -> Timing:
    """Time calls of a function.

    Args:
        function: launches work on the device.
        on: where; on a GPU every call finds a flushed L2 and is timed by events around it.
        repetitions: how many are timed; by default 50 on a GPU and 7 on a CPU.
    """
    if on.type == "cuda":
        return _by_events(function, on, repetitions or REPETITIONS)
    milliseconds = []
    for repetition in range((repetitions or 7) + 2):
        began = time.perf_counter()
        function()
        if repetition >= 2:
            milliseconds.append((time.perf_counter() - began) * 1e3)
    return Timing.of(milliseconds)


def _by_events(function: Callable[[], Any], on: torch.device, repetitions: int) -> Timing:
    for _ in range(WARM_UPS):
        function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    cold: Tensor = torch.empty(L2_BYTES, dtype=torch.int8, device=on)
    pairs = []
    for _ in range(repetitions):
        cold.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return Timing.of([start.elapsed_time(end) for start, end in pairs], peak)
