"""``fashion-large``, ``scenes-large`` and ``scenes-long``: denoisers more worth guiding.

Targets, predictors, judges and budgets are those of ``fashion`` and ``scenes``. The denoisers have
several times the weights, draw their pixels at full resolution, and their samples lie nearer to
the test images; a step of them costs about three times as much. That of ``scenes-long`` is the
network of ``scenes-large`` after six times as many images: what differs between the two is how
well a denoiser knows its data.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ablations.settings import fashion, scenes
from ablations.settings.folded import fashion_unet, scenes_unet
from ablations.settings.setting import Setting
from ablations.settings.shipped import ShippedWeights

__all__ = ["FASHION", "SCENES", "SCENES_LONG", "load_fashion", "load_scenes", "load_scenes_long"]

FASHION = ShippedWeights(
    "fashion-large", fashion.SHAPE, fashion_unet, fashion.evaluator, "fashion-evaluator-64"
)
SCENES = ShippedWeights(
    "scenes-large", scenes.SHAPE, scenes_unet, scenes.evaluator, "scenes-evaluator-64"
)
SCENES_LONG = replace(SCENES, name="scenes-long")


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


def load_scenes_long() -> Setting:
    """Scenes, with the denoiser that was trained longer.

    Raises:
        UserError: if there are no weights.
    """
    return _with_denoiser(scenes.load(), SCENES_LONG, 0.0070)


def _with_denoiser(small: Setting, weights: ShippedWeights, seconds: float) -> Setting:
    """The small setting with another denoiser, a step of which takes so long for an image."""
    return replace(
        small,
        name=weights.name,
        denoiser=lru_cache(weights.denoiser),
        denoise_seconds=seconds,
        fingerprint=f"{small.fingerprint}-{weights.fingerprint()}",
    )
