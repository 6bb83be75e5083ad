"""Denoisers of the embedded settings that draw their pixels at full resolution.

Each is the ADM U-Net at half the resolution between a stem and a head at the full one; see
:class:`ppap.denoisers.folded.FoldedUNet`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ablations.settings.small_networks import small_unet
from ppap.denoisers.folded import FoldedUNet
from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.schedule import linear_schedule

__all__ = ["SPREADS", "fashion_unet", "scenes_unet"]

SPREADS = {"fashion": 0.870, "scenes": 0.357}
"""Root mean square of each setting's training images in [-1, 1]."""
NORM_GROUPS = 8
FEATURES = 16


def fashion_unet(classes: int | None = None) -> Preconditioned:
    """For 32x32 greyscale garments: 4.1 M parameters, 216 M multiplications an image.

    Args:
        classes: that it is conditional on; by default none.
    """
    return _preconditioned(1, (1, 1.5, 2), SPREADS["fashion"], classes)


def scenes_unet() -> Preconditioned:
    """For 32x32 RGB scenes: 4.8 M parameters, 269 M multiplications an image."""
    return _preconditioned(3, (1, 2, 2), SPREADS["scenes"])


def _preconditioned(
    channels: int, widths: Sequence[float], spread: float, classes: int | None = None
) -> Preconditioned:
    network = small_unet(4 * channels, 4 * FEATURES, 64, widths, NORM_GROUPS, classes)
    return Preconditioned(FoldedUNet(channels, network, FEATURES), linear_schedule(), spread)
