"""Which setting a cell belongs to, how its networks are run, and what all cells count in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ablations.settings.catalogue import load_setting
from ablations.settings.setting import RunPath, Setting
from ppap.compute.precision import Precision
from ppap.diffusion.denoiser import Denoiser

__all__ = ["PER_MILLE", "Setup"]

PER_MILLE = 1000
"""Timesteps at which something is measured count as if the schedule had so many."""


@dataclass(frozen=True)
class Setup:
    """Which setting, with which weights, on which path.

    Attributes:
        name: of the setting.
        fingerprint: of its weights.
        path: on which networks are run: step by step, on the fast path, or on it in bfloat16.
    """

    name: str
    fingerprint: str
    path: RunPath = "plain"

    @classmethod
    def of(cls, setting: Setting) -> Setup:
        return cls(setting.name, setting.fingerprint, setting.path)

    @property
    def fast(self) -> bool:
        """Whether networks are run on the fast path, where it can run them."""
        return self.path != "plain"

    @property
    def precision(self) -> Precision:
        """In which networks draw samples."""
        return "bf16" if self.path == "bf16" else "fp32"

    def fast_with(self, denoiser: Denoiser) -> bool:
        """The same for sampling: conditions that differ between images need the plain path."""
        return self.fast and denoiser.condition_count is None

    def batch_for(self, count: int) -> int:
        """Images per network call of so many that are drawn at once.

        On the fast path, where the last batch is filled up, all are of about one size.
        """
        most = self.load().batch
        return math.ceil(count / math.ceil(count / most)) if self.fast else most

    def load(self) -> Setting:
        return load_setting(self.name)

    def denoise_seconds(self) -> float:
        """Expected time of a step of one image on one core."""
        return self.load().denoise_seconds

    def image_bytes(self) -> int:
        """Of an image as the denoiser draws it, one byte a value."""
        return math.prod(self.load().denoiser().shape)
