"""What every test run shares: processes, threads, the CPU to play, and when benchmarks run."""

from __future__ import annotations

import os

import pytest

from tests.cpus import CPUS

MOST_WORKERS = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", choices=CPUS, help="play an older CPU; see tests/cpus.py")
    parser.addoption(
        "--thorough", action="store_true", help="trace and compile more random networks"
    )
    parser.addoption(
        "--bench-rounds", type=int, help="rounds of each way, whatever its benchmark asks for"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Before torch is imported, here or in a worker."""
    if config.option.cpu:
        os.environ.update(CPUS[config.option.cpu])


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A worker for each core, with one thread; none for benchmarks and single tests.

    Benchmarks want the machine for themselves, and a test that is named alone wants its output
    at once. Workers inherit the environment, so that the thread is theirs before torch starts.
    A user's own ``OMP_NUM_THREADS`` or ``-n`` holds.
    """
    if config.getoption("benchmark_only") or all("::" in path for path in config.args):
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: runs with --thorough alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("thorough"):
        slow = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    if config.getoption("benchmark_enable") and not config.getoption("benchmark_only"):
        return
    only = config.getoption("benchmark_only")
    unwanted = [i for i in items if ("benchmark" in getattr(i, "fixturenames", ())) != only]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
