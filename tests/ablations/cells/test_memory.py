"""What experts weigh."""

from __future__ import annotations

import pytest

from ablations.cells.memory import Footprint


def test_copies_weigh_n_times_and_adapters_hardly_more_than_one() -> None:
    weigh = {
        (form, count): Footprint("resnet18", form, count).compute(lambda cell: None).meta["metrics"]  # type: ignore[arg-type,return-value]
        for form in ("copies", "adapters", "merged")
        for count in (1, 4)
    }
    one = weigh["copies", 1]["memory_mib"]
    assert weigh["copies", 4]["memory_mib"] == pytest.approx(4 * one)
    assert weigh["copies", 4]["parameters"] == 4 * weigh["copies", 1]["parameters"]
    for form in ("adapters", "merged"):
        few, many = weigh[form, 1], weigh[form, 4]
        per_expert = (many["parameters"] - few["parameters"]) / 3
        assert per_expert == pytest.approx(
            few["trainable_share"] * weigh["copies", 1]["parameters"]
        )
        assert many["disk_mib"] < 2 * weigh["copies", 1]["disk_mib"]
        assert many["memory_mib"] < 3 * one
