"""The embedded setting ``fashion-large``: garments with a denoiser that is worth guiding.

Targets, predictors, judge and budgets are those of ``fashion``. The denoiser has five times the
weights, draws its pixels at full resolution, and its samples lie much nearer to the test images;
a step of it costs about three times as much.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ablations.settings import fashion
from ablations.settings.folded import fashion_unet
from ablations.settings.setting import Setting
from ablations.settings.shipped import ShippedWeights

__all__ = ["FASHION", "load_fashion"]

FASHION = ShippedWeights(
    "fashion-large", fashion.SHAPE, fashion_unet, fashion.evaluator, "fashion-evaluator-64"
)


def load_fashion() -> Setting:
    """The setting, with the weights that the repository ships.

    Raises:
        UserError: if there are none.
    """
    small = fashion.load()
    return replace(
        small,
        name=FASHION.name,
        denoiser=lru_cache(FASHION.denoiser),
        denoise_seconds=0.0060,
        fingerprint=f"{small.fingerprint}-{FASHION.fingerprint()}",
    )
