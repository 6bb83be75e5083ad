"""What is prepared once pays from some number of images on, or never."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from reports.amortised import PUBLISHED_PASSES, cheaper_after, with_cheaper_after


@pytest.mark.parametrize(
    ("rival", "reference", "images"),
    [
        ((0.5, 0.0), (0.1, 200.0), 500.0),  # 200 s ahead, 0.4 s saved with each
        ((0.5, 150.0), (0.1, 200.0), 125.0),
        ((0.5, 300.0), (0.1, 200.0), 0.0),
        ((0.1, 0.0), (0.1, 200.0), math.nan),
        ((0.1, 900.0), (0.2, 200.0), math.nan),  # the reference leads, and not for ever
        ((0.1, 300.0), (0.1, 200.0), 0.0),  # as quick, and sooner ready
        ((0.1, 200.0), (0.1, 200.0), math.nan),  # as dear in all
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


def test_passes_of_the_denoiser_are_counted_and_the_papers_images_predicted() -> None:
    rows = pd.DataFrame(
        {
            "method": ["ppap", "freedom", "held back", "single"],
            "predictor": "resnet",
            "reference": [True, False, False, False],
            "denoiser_forward": [25.0, 50.0, 25.0, 25.0],
            "denoiser_backward": [0.0, 50.0, 0.0, 0.0],
            "preparation_passes": [100_000, 0, 100_000, 0],
        }
    )
    found = with_cheaper_after(rows)
    assert "cheaper_after" not in found  # nothing was timed
    never = math.nan  # what costs as much an image is never dearer
    assert found["cheaper_after_passes"].tolist() == pytest.approx(
        [math.nan, 100_000 / 75, never, never], nan_ok=True
    )
    assert found["cheaper_after_at_scale"].tolist() == pytest.approx(
        [math.nan, PUBLISHED_PASSES / 75, never, never], nan_ok=True
    )


def test_rows_of_old_that_nobody_counted_get_no_column() -> None:
    rows = pd.DataFrame({"predictor": ["resnet"], "reference": [True], "seconds_per_image": [0.1]})
    assert list(with_cheaper_after(rows)) == list(rows)
