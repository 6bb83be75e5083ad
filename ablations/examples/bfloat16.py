"""A denoiser: the one of garments, its weights rounded to bfloat16.

python -m ablations run methods --plugin ablations.examples.bfloat16 --setting fashion-bfloat16
"""

from __future__ import annotations

from copy import deepcopy

import torch

from ablations.settings.catalogue import load_setting
from ablations.settings.plugins import derived, setting
from ablations.settings.setting import Setting
from ppap.diffusion.denoiser import Denoiser


def rounded() -> Denoiser:
    """Its weights have 8 significant bits; it computes in float32."""
    denoiser = deepcopy(load_setting("fashion").denoiser())
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.copy_(weight.bfloat16())
    return denoiser


@setting("fashion-bfloat16")
def load() -> Setting:
    """Garments, drawn by the rounded denoiser."""
    return derived(load_setting("fashion"), "fashion-bfloat16", [__file__], denoiser=rounded)
