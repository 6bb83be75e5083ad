"""What is prepared once pays from some number of images on, or never."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from reports.amortised import cheaper_after, with_cheaper_after


@pytest.mark.parametrize(
    ("rival", "reference", "images"),
    [
        ((0.5, 0.0), (0.1, 200.0), 500.0),  # 200 s ahead, 0.4 s saved with each
        ((0.5, 150.0), (0.1, 200.0), 125.0),
        ((0.5, 300.0), (0.1, 200.0), 0.0),
        ((0.1, 0.0), (0.1, 200.0), math.nan),
        ((0.1, 900.0), (0.2, 200.0), math.nan),  # the reference leads, and not for ever
        ((math.nan, 0.0), (0.1, 200.0), math.nan),
    ],
)
def test_totals_meet_where_the_saving_has_paid_for_the_preparation(
    rival: tuple[float, float], reference: tuple[float, float], images: float
) -> None:
    found = cheaper_after(*rival, *reference)
    assert found == pytest.approx(images, nan_ok=True)
    if images > 0:
        totals = [preparation + images * each for each, preparation in (rival, reference)]
        assert totals[0] == pytest.approx(totals[1])


def test_rows_are_held_against_the_reference_of_their_own_predictor() -> None:
    rows = pd.DataFrame(
        {
            "method": ["ppap", "dps", "ppap", "dps", "unguided"],
            "predictor": ["resnet", "resnet", "vit", "vit", "none"],
            "reference": [True, False, True, False, False],
            "seconds_per_image": [0.1, 0.5, 0.2, 0.3, 0.1],
            "preparation_seconds": [200.0, 0.0, 50.0, 0.0, math.nan],
        }
    )
    found = with_cheaper_after(rows)["cheaper_after"].tolist()
    assert found == pytest.approx([math.nan, 500.0, math.nan, 500.0, math.nan], nan_ok=True)
