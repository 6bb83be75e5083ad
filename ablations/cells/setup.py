"""Which setting a cell belongs to, and what all cells count in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ablations.settings.catalogue import load_setting
from ablations.settings.setting import Setting

__all__ = ["DENOISE_SECONDS", "PER_MILLE", "Setup"]

DENOISE_SECONDS = 0.0019
"""Per image and step, on one core of the reference machine; for the estimate of the time left."""
PER_MILLE = 1000
"""Timesteps at which something is measured count as if the schedule had so many."""


@dataclass(frozen=True)
class Setup:
    """Which setting, with which weights."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, setting: Setting) -> Setup:
        return cls(setting.name, setting.fingerprint)

    def load(self) -> Setting:
        return load_setting(self.name)

    def image_bytes(self) -> int:
        """Of an image as the denoiser draws it, one byte a value."""
        return math.prod(self.load().denoiser().shape)
