"""From how many images on what had to be prepared is cheaper than what needs no preparation."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

__all__ = ["PUBLISHED_PASSES", "cheaper_after", "with_cheaper_after"]

PUBLISHED_PASSES = 500_000 * 25
"""Of the denoiser, for the paper's synthetic images (arXiv 2212.05973) in the steps in use here."""


def cheaper_after(
    seconds: float, preparation: float, reference_seconds: float, reference_preparation: float
) -> float:
    """The number of images at which the reference's total time meets a rival's.

    Args:
        seconds: of the rival, an image; or passes of a network, or whatever else is paid in.
        preparation: of the rival, before its first image.
        reference_seconds: of the reference, an image.
        reference_preparation: of the reference, before its first image.

    Returns:
        0 where the reference is cheaper from the first image on; NaN where it never is, or a
        figure is not known.
    """
    saved, advance = seconds - reference_seconds, reference_preparation - preparation
    if math.isnan(saved) or math.isnan(advance):
        return math.nan
    if saved == 0:  # what is ahead at the start stays so
        return 0.0 if advance < 0 else math.nan
    return max(0.0, advance / saved) if saved > 0 else math.nan


def with_cheaper_after(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, told when their predictor's reference row becomes cheaper than they are.

    In the columns ``cheaper_after``, in seconds; ``cheaper_after_passes``, in passes of the
    denoiser; and ``cheaper_after_at_scale``, in passes, had the paper's number of synthetic images
    been drawn. A column whose figures no row has is left out.
    """
    if rows.empty:
        return rows
    passes = _column(rows, "denoiser_forward") + _column(rows, "denoiser_backward")
    prepared = _column(rows, "preparation_passes")
    ways = {
        "cheaper_after": (_column(rows, "seconds_per_image"), _column(rows, "preparation_seconds")),
        "cheaper_after_passes": (passes, prepared),
        "cheaper_after_at_scale": (passes, prepared.mask(prepared > 0, PUBLISHED_PASSES)),
    }
    return rows.assign(
        **{
            name: _cheaper(rows, each, before)
            for name, (each, before) in ways.items()
            if each.notna().any() and before.notna().any()
        }
    )


def _column(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    found = rows[name] if name in rows else pd.Series(math.nan, rows.index)
    return found.astype(float)


def _cheaper(rows: pd.DataFrame, each: pd.Series[float], before: pd.Series[float]) -> list[float]:
    """Of every row, from what each has cost before its first image and costs for an image."""
    places = {rows.loc[i, "predictor"]: i for i in reversed(rows.index[rows["reference"]])}

    def of(place: Any) -> float:
        own = places.get(rows.loc[place, "predictor"])
        if rows.loc[place, "reference"] or own is None:
            return math.nan
        return cheaper_after(each[place], before[place], each[own], before[own])

    return [of(place) for place in rows.index]
