"""What the suites share: threads, how a way is measured, and the table at the end."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.machine import Operations, clock, measure_ceiling, peak_memory
from bench.paired import UNSTEADY, Paired, alternate
from ppap.compute.allocator import keep_freed_memory
from ppap.compute.cpu import cpu_model, instruction_set

ROUNDS = 7


def pytest_configure(config: pytest.Config) -> None:
    """The table at the end is ours: pytest-benchmark's own knows of no pairs."""
    config.option.benchmark_quiet = True


@pytest.fixture(scope="session", autouse=True)
def _cores() -> None:
    """All of them: what a user has who starts one process.

    Whatever is compared keeps freed memory, as the library has it; else the reference would be
    slower by its page faults.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()


Measure = Callable[..., None]


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, _cores: None) -> Measure:
    """Time a way of doing something in rounds with its reference; see :mod:`bench.paired`.

    Called as ``measure(group, way, function, against=reference, images=B, counted=plain)``.
    ``counted`` does the same operations in eager torch, where they can be counted: the function
    itself, or what it was compiled from. Peak memory is that of one call alone. The machine's
    ceiling is measured right before the rounds, for a machine that others share changes its speed
    within minutes.
    """

    def run(
        group: str,
        way: str,
        function: Callable[[], Any],
        against: Callable[[], Any],
        images: int = 0,
        counted: Callable[[], Any] | None = None,
        rounds: int = ROUNDS,
    ) -> None:
        function()
        against()
        peak, before = peak_memory(function)
        ceiling = measure_ceiling()
        wanted = request.config.getoption("--bench-rounds") or rounds
        pairs = Paired.of_calls(*alternate(function, against, wanted, clock))
        info = describe(benchmark, group, way, pairs)
        info["peak_mib"] = round(peak, 1)
        info["peak_above_resident_mib"] = round(peak - before, 1)
        seconds = statistics.median(pairs.own)
        if images:
            info["images_per_second"] = round(images / seconds, 2)
        if counted is not None:
            with Operations() as counter:
                counted()
            info["gflops"] = round(counter.total / seconds / 1e9, 2)
            share = ceiling.share(counter.convolutions, counter.products, seconds)
            info["of_ceiling"] = round(share, 3)
        info["convolution_gflops"] = round(ceiling.convolution / 1e9, 1)
        info["product_gflops"] = round(ceiling.product / 1e9, 1)

    return run


def describe(benchmark: BenchmarkFixture, group: str, way: str, pairs: Paired) -> dict[str, Any]:
    """Put a row's times and ratio beside pytest-benchmark's entry; what counts is these."""
    benchmark.group = group
    info: dict[str, Any] = benchmark.extra_info
    ratio = pairs.ratio
    info["way"], info["rounds"] = way, len(pairs.own)
    info["ms"] = round(statistics.median(pairs.own) * 1e3, 4)
    info["reference_ms"] = round(statistics.median(pairs.reference) * 1e3, 4)
    info["ratio"] = round(ratio.median, 4)
    info["ratio_interval"] = [round(ratio.low, 4), round(ratio.high, 4)]
    info["spread"] = round(pairs.spread, 4)
    benchmark.pedantic(lambda: None, rounds=1)
    return info


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Records say what machine it was, not whose."""
    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cpu_model"] = cpu_model()
    machine_info["instruction_set"] = instruction_set()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether ours is the fastest of the ways that do the same work."""
    rivals = [info for info in rows if "floor" not in info["way"]]
    way = min(rivals, key=lambda info: info["ms"])["way"].replace("reference", "eager")
    return "ours is fastest" if way.startswith("ours") else f"torch is faster: {way}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line per way, with its ratio to the group's reference."""
    session = getattr(config, "_benchmarksession", None)
    ways = [b for b in getattr(session, "benchmarks", ()) if "way" in b.extra_info]
    if not ways:
        return
    groups: dict[str, list[dict[str, Any]]] = {}
    for bench in ways:
        groups.setdefault(bench.group, []).append(bench.extra_info)
    write = terminalreporter.write_line
    terminalreporter.section("medians, and how many times as fast as the reference")
    write(f"{cpu_model()}; {instruction_set()}; {torch.get_num_threads()} threads")
    unsteady = [bench for bench in ways if bench.extra_info.get("spread", 0) > UNSTEADY]
    if unsteady:
        write(
            f"UNSTEADY MACHINE: rounds of {len(unsteady)} of {len(ways)} rows spread by more than "
            f"{UNSTEADY:.0%}"
        )
    heading = (
        f"{'':30} {'ms':>9} {'reference':>9} {'ratio':>6} {'interval':>13} {'spread':>6} "
        f"{'img/s':>8} {'GFLOP/s':>8} {'of most':>7} {'peak MiB':>9}"
    )
    for group, rows in groups.items():
        write(f"{group}\n{heading}")
        for info in rows:
            write(line(info))
        if any("device" in info for info in rows):
            write(f"  {verdict(rows)}")


def line(info: dict[str, Any]) -> str:
    """Of the table; blank where a row has nothing to say."""
    if "mib" in info:
        return f"  {info['way']:28} {info['mib']} MiB, {info['times_one_model']} times one model"

    def cell(key: str, width: int, form: str) -> str:
        return f"{format(info[key], form) if key in info else '':>{width}}"

    low, high = info["ratio_interval"]
    return (
        f"  {info['way']:28} {cell('ms', 9, '.3f')} {cell('reference_ms', 9, '.3f')} "
        f"{cell('ratio', 6, '.2f')} {f'{low:.2f}-{high:.2f}':>13} {cell('spread', 6, '.0%')} "
        f"{cell('images_per_second', 8, '.1f')} {cell('gflops', 8, '.1f')} "
        f"{cell('of_ceiling', 7, '.0%')} {cell('peak_mib', 9, '.0f')}"
    )
