"""The embedded settings ``fashion-large`` and ``scenes-large``: denoisers more worth guiding.

Targets, predictors, judges and budgets are those of ``fashion`` and ``scenes``. The denoisers have
several times the weights, draw their pixels at full resolution, and their samples lie nearer to
the test images; a step of them costs about three times as much.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ablations.settings import fashion, scenes
from ablations.settings.folded import fashion_unet, scenes_unet
from ablations.settings.setting import Setting
from ablations.settings.shipped import ShippedWeights

__all__ = ["FASHION", "SCENES", "load_fashion", "load_scenes"]

FASHION = ShippedWeights(
    "fashion-large", fashion.SHAPE, fashion_unet, fashion.evaluator, "fashion-evaluator-64"
)
SCENES = ShippedWeights(
    "scenes-large", scenes.SHAPE, scenes_unet, scenes.evaluator, "scenes-evaluator-64"
)


def load_fashion() -> Setting:
    """Garments, with the weights that the repository ships.

    Raises:
        UserError: if there are none.
    """
    return _with_denoiser(fashion.load(), FASHION, 0.0060)


def load_scenes() -> Setting:
    """Scenes, with the weights that the repository ships.

    Raises:
        UserError: if there are none.
    """
    return _with_denoiser(scenes.load(), SCENES, 0.0070)


def _with_denoiser(small: Setting, weights: ShippedWeights, seconds: float) -> Setting:
    """The small setting with another denoiser, a step of which takes so long for an image."""
    return replace(
        small,
        name=weights.name,
        denoiser=lru_cache(weights.denoiser),
        denoise_seconds=seconds,
        fingerprint=f"{small.fingerprint}-{weights.fingerprint()}",
    )
