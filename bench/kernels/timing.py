"""How long a kernel takes: events and a cold L2 on a GPU, a clock on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.machine import clock
from bench.paired import Paired, alternate

__all__ = ["device", "pairs_of"]

L2_BYTES = 256 * 2**20
"""Written between repetitions; more than any GPU's second-level cache."""
SHORTEST = 2e-3
"""Seconds that a timing takes at least on a CPU; what is shorter is repeated within it."""
WARM_UPS, ROUNDS_ON_GPU, ROUNDS_ON_CPU = 5, 25, 7


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pairs_of(
    function: Callable[[], Any], against: Callable[[], Any], on: torch.device, rounds: int = 0
) -> tuple[Paired, float]:
    """Time two functions in turn.

    Args:
        function: launches work on the device.
        against: what it is compared with.
        on: where; on a GPU every call finds a flushed L2 and is timed by events around it.
        rounds: of two calls each; by default 25 on a GPU and 7 on a CPU.

    Returns:
        Seconds, and MiB of device memory that a call of ``function`` needs above what was
        allocated before; 0 on a CPU.
    """
    if on.type == "cuda":
        return _by_events(function, against, on, rounds or ROUNDS_ON_GPU)
    for warm in (function, against):
        warm()
    repeats = {call: max(1, round(SHORTEST / clock(call))) for call in (function, against)}

    def timed(call: Callable[[], Any]) -> float:
        many = repeats[call]
        return clock(lambda: [call() for _ in range(many)]) / many

    return Paired.of_calls(*alternate(function, against, rounds or ROUNDS_ON_CPU, timed)), 0.0


def _by_events(
    function: Callable[[], Any], against: Callable[[], Any], on: torch.device, rounds: int
) -> tuple[Paired, float]:
    for _ in range(WARM_UPS):
        function()
        against()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    cold: Tensor = torch.empty(L2_BYTES, dtype=torch.int8, device=on)

    def timed(call: Callable[[], Any]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        cold.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    calls = alternate(function, against, rounds, timed)
    torch.cuda.synchronize()
    own, reference = ([a.elapsed_time(b) / 1e3 for a, b in events] for events in calls)
    return Paired.of_calls(own, reference), peak
