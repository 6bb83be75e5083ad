"""What the suites share: the machine's ceiling, peak memory, and the table at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ppap.compute.allocator import keep_freed_memory, return_freed_memory

ROUNDS = 7
SIDE = 1536


@pytest.fixture(scope="session", autouse=True)
def _cores() -> None:
    """All of them: what a user has who starts one process.

    Whatever is compared keeps freed memory, as the library has it; else the reference would be
    slower by its page faults.
    """
    import os

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()


@pytest.fixture(scope="session")
def ceiling(_cores: None) -> float:
    """GFLOP/s of a large float32 matrix product, median of a few: the most to be had here."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    seconds = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / statistics.median(seconds[2:]) / 1e9


class Operations(TorchDispatchMode):
    """Adds up torch's own counts; its FlopCounterMode refuses ``torch.autograd.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


Measure = Callable[..., None]


@pytest.fixture
def measure(benchmark: BenchmarkFixture, ceiling: float) -> Measure:
    """Time a way of doing something; note images, operations and memory beside it.

    Called as ``measure(group, way, function, images=B, counted=plain)``: the median of at least
    five rounds after a warm-up. ``counted`` runs the same work in plain torch, for its operations
    are counted; GFLOP/s are those of the work, whatever a way spends on it. Peak memory is that
    of one call alone. ``against`` runs before each round and is timed too: the ratio is the
    median over these pairs, for a machine that others share changes its speed within minutes.
    """

    def run(
        group: str,
        way: str,
        function: Callable[[], Any],
        images: int = 0,
        counted: Callable[[], Any] | None = None,
        rounds: int = ROUNDS,
        against: Callable[[], Any] | None = None,
    ) -> None:
        benchmark.group = group
        benchmark.extra_info["way"] = way
        function()
        _forget_peak()
        before = _resident("VmRSS")
        function()
        peak = _resident("VmHWM")
        references: list[float] = []

        def reference() -> None:
            """Before every round, so that both see the same weather."""
            assert against is not None
            began = time.perf_counter()
            against()
            references.append(time.perf_counter() - began)

        if against is not None:
            against()
        benchmark.pedantic(
            function,
            rounds=rounds,
            iterations=1,
            warmup_rounds=0 if against else 1,
            setup=reference if against else None,
        )
        median = benchmark.stats.stats.median
        info = benchmark.extra_info
        info["peak_mib"] = round(peak / 1024, 1)
        info["peak_above_resident_mib"] = round((peak - before) / 1024, 1)
        if references:
            own = benchmark.stats.stats.data
            pairs = [a / b for a, b in zip(references, own, strict=True)]
            info["ratio"] = round(statistics.median(pairs), 3)
            info["reference_ms"] = round(statistics.median(references) * 1e3, 3)
        if images:
            info["images_per_second"] = round(images / median, 2)
        if counted is not None:
            with Operations() as counter:
                counted()
            info["gflops"] = round(counter.total / median / 1e9, 2)
            info["matmul_gflops"] = round(ceiling, 1)

    return run


def _forget_peak() -> None:
    """Let the kernel's high-water mark of resident memory start anew (Linux)."""
    return_freed_memory()
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _resident(what: str) -> float:
    """KiB; NaN where the kernel does not tell."""
    path = Path("/proc/self/status")
    if not path.exists():
        return math.nan
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return float(fields[what].split()[0])


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Records say what machine it was, not whose."""
    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()


def milliseconds(bench: Any) -> float:
    """Median; by the device's own events where those were taken."""
    return float(bench.extra_info.get("device_ms") or bench.stats.median * 1e3)


def verdict(found: list[Any]) -> str:
    """Whether ours is the fastest of the ways that do the same work."""
    rivals = [b for b in found if "floor" not in b.extra_info["way"]]
    best = min(rivals, key=milliseconds)
    way = best.extra_info["way"].replace("reference", "eager")
    return "ours is fastest" if way.startswith("ours") else f"torch is faster: {way}"


def held(info: dict[str, Any]) -> str:
    """What a bank's tensors weigh, where that was measured."""
    if "mib" not in info:
        return ""
    return f"  {info['mib']} MiB, {info['times_one_model']} times one model"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line per way, with its ratio to the group's reference."""
    session = getattr(config, "_benchmarksession", None)
    ways = [b for b in getattr(session, "benchmarks", ()) if "way" in b.extra_info and b.stats]
    if not ways:
        return
    groups: dict[str, list[Any]] = {}
    for bench in ways:
        groups.setdefault(bench.group, []).append(bench)
    write = terminalreporter.write_line
    terminalreporter.section("medians, and how many times as fast as the reference")
    heading = f"{'':30} {'ms':>9} {'img/s':>8} {'GFLOP/s':>8} {'peak MiB':>9} {'ratio':>6}"
    for group, found in groups.items():
        write(f"{group}\n{heading}")
        base = next((milliseconds(b) for b in found if b.extra_info["way"] == "reference"), None)
        for bench in found:
            info = bench.extra_info
            ratio = f"{info['ratio']:6.2f}" if "ratio" in info else ""
            ratio = ratio or ("" if base is None else f"{base / milliseconds(bench):6.2f}")
            write(
                f"  {info['way']:28} {milliseconds(bench):9.3f} "
                f"{info.get('images_per_second', ''):>8} {info.get('gflops', ''):>8} "
                f"{info.get('peak_mib', ''):>9} {ratio:>6}"
                f"{held(info)}"
            )
        if found[0].extra_info.get("device_ms"):
            write(f"  {verdict(found)}")
    ceilings = [b.extra_info["matmul_gflops"] for b in ways if "matmul_gflops" in b.extra_info]
    if ceilings:
        write(f"a large matrix product runs at {max(ceilings)} GFLOP/s here")
