"""What the suites share: threads, how a way is measured, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.groups import Group
from bench.paired import UNSTEADY
from ppap.compute.allocator import keep_freed_memory
from ppap.compute.cpu import cpu_model, instruction_set


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


Measure = Callable[[Group, str], dict[str, Any]]


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, _cores: None) -> Measure:
    """Put a way's row, as :mod:`bench.groups` measures it, beside pytest-benchmark's entry.

    Called as ``measure(group, way)`` by a test with a parameter ``way`` and a group that outlives
    it, as a fixture of the module. Gives the row, for what a suite adds to it.
    """

    def run(group: Group, way: str) -> dict[str, Any]:
        rounds = request.config.getoption("--bench-rounds")
        row = group.row(way, selected_ways(request.node, request.session.items), rounds)
        benchmark.group = group.name
        info: dict[str, Any] = benchmark.extra_info
        info.update(row)
        benchmark.pedantic(lambda: None, rounds=1)
        return info

    return run


def selected_ways(test: Any, items: Iterable[Any]) -> list[str]:
    """The ways of a test's group that a run has selected.

    They are the parameter ``way`` of those of ``items`` that are this test but for it.
    """

    def group_of(item: Any) -> object:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return getattr(item, "function", None), parameters | {"way": None}

    return [item.callspec.params["way"] for item in items if group_of(item) == group_of(test)]


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
    if not rivals:
        return "nothing here does the same work"
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

    interval = "-".join(f"{end:.2f}" for end in info.get("ratio_interval", ()))
    return (
        f"  {info['way']:28} {cell('ms', 9, '.3f')} {cell('reference_ms', 9, '.3f')} "
        f"{cell('ratio', 6, '.2f')} {interval:>13} {cell('spread', 6, '.0%')} "
        f"{cell('images_per_second', 8, '.1f')} {cell('gflops', 8, '.1f')} "
        f"{cell('of_ceiling', 7, '.0%')} {cell('peak_mib', 9, '.0f')}"
    )
