"""How long a kernel takes: events and a cold L2 on a GPU, a clock on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.machine import clock
from bench.paired import Paired, interleave, round_means

__all__ = ["device", "device_memory", "pairs_of", "rounds_on", "seconds_of"]

L2_BYTES = 256 * 2**20
"""Written between repetitions; more than any GPU's second-level cache."""
SHORTEST = 2e-3
"""Seconds that a timing takes at least on a CPU; what is shorter is repeated within it."""
WARM_UPS, ROUNDS_ON_GPU, ROUNDS_ON_CPU = 5, 25, 7


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rounds_on(on: torch.device) -> int:
    """How many rounds a device is timed for."""
    return ROUNDS_ON_GPU if on.type == "cuda" else ROUNDS_ON_CPU


def seconds_of(
    ways: Mapping[str, Callable[[], Any]], rounds: int, on: torch.device
) -> dict[str, tuple[float, ...]]:
    """Time ways in turn: seconds of each, a figure a round.

    Args:
        ways: launch work on the device.
        rounds: of two calls of each way.
        on: where; on a GPU every call finds a flushed L2 and is timed by events around it.
    """
    if on.type == "cuda":
        _warm_up(ways.values())
        calls = _events(ways, on, rounds)
    else:
        calls = _by_clock(ways, rounds)
    return {name: round_means(own) for name, own in calls.items()}


def pairs_of(
    function: Callable[[], Any], against: Callable[[], Any], on: torch.device, rounds: int = 0
) -> tuple[Paired, float]:
    """Time two functions in turn.

    Args:
        function: launches work on the device.
        against: what it is compared with.
        on: as of :func:`seconds_of`.
        rounds: as of :func:`seconds_of`; by default 25 on a GPU and 7 on a CPU.

    Returns:
        Seconds, and MiB of device memory that a call of ``function`` needs above what was
        allocated before; 0 on a CPU.
    """
    rounds = rounds or rounds_on(on)
    if on.type == "cuda":
        return _by_events(function, against, on, rounds)
    calls = _by_clock({"reference": against, "own": function}, rounds)
    return Paired.of_calls(calls["own"], calls["reference"]), 0.0


def device_memory(function: Callable[[], Any]) -> tuple[float, float]:
    """MiB allocated on the GPU at the peak of one call, and before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() / 2**20, before / 2**20


def _warm_up(ways: Iterable[Callable[[], Any]]) -> None:
    for call in [*ways] * WARM_UPS:
        call()


def _by_clock(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    for warm in ways.values():
        warm()
    repeats = {call: max(1, round(SHORTEST / clock(call))) for call in ways.values()}

    def timed(call: Callable[[], Any]) -> float:
        many = repeats[call]
        return clock(lambda: [call() for _ in range(many)]) / many

    return interleave(ways, rounds, timed)


def _by_events(
    function: Callable[[], Any], against: Callable[[], Any], on: torch.device, rounds: int
) -> tuple[Paired, float]:
    _warm_up((function, against))
    peak, before = device_memory(function)
    calls = _events({"reference": against, "own": function}, on, rounds)
    return Paired.of_calls(calls["own"], calls["reference"]), peak - before


def _events(
    ways: Mapping[str, Callable[[], Any]], on: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call."""
    cold: Tensor = torch.empty(L2_BYTES, dtype=torch.int8, device=on)

    def timed(call: Callable[[], Any]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        cold.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    calls = interleave(ways, rounds, timed)
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) / 1e3 for a, b in own] for name, own in calls.items()}
