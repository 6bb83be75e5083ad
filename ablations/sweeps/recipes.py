"""The ways of guiding that the paper compares, and the columns that judge them."""

from __future__ import annotations

from ablations.sweeps.lab import FULL, NAIVE, Recipe

__all__ = ["METHODS", "MULTI", "PPAP", "QUALITY", "SINGLE"]

QUALITY = ("accuracy", "fid", "fid_infinity", "precision", "recall")
SINGLE = Recipe(experts=1, supervision="labelled", tuning=FULL)
MULTI = Recipe(supervision="labelled", tuning=FULL)
PPAP = Recipe()
METHODS = {"naive": NAIVE, "single": SINGLE, "multi-experts": MULTI, "ppap": PPAP}
