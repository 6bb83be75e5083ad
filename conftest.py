"""What every test run shares: benchmarks run when they are asked for, and then alone."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("benchmark_enable") and not config.getoption("benchmark_only"):
        return
    only = config.getoption("benchmark_only")
    unwanted = [i for i in items if ("benchmark" in getattr(i, "fixturenames", ())) != only]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
