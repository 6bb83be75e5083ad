"""From how many images on what had to be prepared is cheaper than what needs no preparation."""

from __future__ import annotations

import math

import pandas as pd

__all__ = ["cheaper_after", "with_cheaper_after"]


def cheaper_after(
    seconds: float, preparation: float, reference_seconds: float, reference_preparation: float
) -> float:
    """The number of images at which the reference's total time meets a rival's.

    Args:
        seconds: of the rival, an image.
        preparation: of the rival, seconds before its first image.
        reference_seconds: of the reference, an image.
        reference_preparation: of the reference, seconds before its first image.

    Returns:
        0 where the reference is cheaper from the first image on; NaN where it never is, or a
        figure is not known.
    """
    saved, advance = seconds - reference_seconds, reference_preparation - preparation
    if math.isnan(saved) or math.isnan(advance) or saved <= 0:
        return math.nan
    return max(0.0, advance / saved)


def with_cheaper_after(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the column ``cheaper_after``, against their predictor's reference row."""
    needed = ("seconds_per_image", "preparation_seconds")
    if rows.empty or not all(rows[name].notna().any() for name in needed):
        return rows
    references = rows[rows["reference"]].drop_duplicates("predictor").set_index("predictor")

    def of(row: pd.Series) -> float:
        if row["reference"] or row["predictor"] not in references.index:
            return math.nan
        reference = references.loc[row["predictor"]]
        figures = (float(part[name]) for part in (row, reference) for name in needed)
        return cheaper_after(*figures)

    return rows.assign(cheaper_after=[of(row) for _, row in rows.iterrows()])
