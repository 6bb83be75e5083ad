r"""A predictor: the two that garments have, as one.

python -m ablations run methods --plugin ablations.examples.ensemble \
        --setting fashion-ensemble --predictors resnet ensemble
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from ablations.settings.catalogue import load_setting
from ablations.settings.fashion import MEAN, STD
from ablations.settings.plugins import derived, setting
from ablations.settings.setting import Setting
from ppap.predictors.predictor import Predictor


class Mean(nn.Module):
    """The mean of what several networks say, as logarithms of probabilities."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> (B, K)."""
        return torch.stack([each(images).log_softmax(1) for each in self.networks]).mean(0)


def ensemble() -> Predictor:
    """ResNet and vision transformer."""
    known = load_setting("fashion")
    networks = [deepcopy(known.predictor(name).network) for name in ("resnet", "vit")]
    return Predictor(Mean(*networks), MEAN, STD, name="fashion/ensemble").eval()


@setting("fashion-ensemble")
def load() -> Setting:
    """Garments, with one predictor more."""
    return derived(
        load_setting("fashion"), "fashion-ensemble", [__file__], predictors={"ensemble": ensemble}
    )
