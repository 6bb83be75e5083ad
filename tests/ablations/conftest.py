"""A lab at the smallest scale."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import Lab


@pytest.fixture
def lab() -> Lab:
    budget = replace(BUDGETS["smoke"], synthetic=20, steps=5)
    return Lab(load_setting("fashion"), budget, "smoke-custom", ("resnet",))
