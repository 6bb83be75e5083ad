"""The setting ``fashion`` with experts that are not the initial ones."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor

from ablations.settings.catalogue import load_setting
from ppap.diffusion.denoiser import Denoiser
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.bank import ExpertBank

BATCH, SCALE, EXPERTS = 64, 8.0, 5
TARGETS = torch.arange(BATCH) % 10
PREDICTORS = ("resnet", "vit")


@cache
def denoiser(device: str = "cpu") -> Denoiser:
    return copy.deepcopy(load_setting("fashion").denoiser()).to(device)


def bank_of(predictor: str, experts: int = EXPERTS, device: str = "cpu") -> ExpertBank:
    network = copy.deepcopy(load_setting("fashion").predictor(predictor))
    bank = ExpertBank(network, experts, ppap_adapter(4, 2.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return bank.eval().to(device)


def noisy(count: int = BATCH, device: str = "cpu") -> Tensor:
    """(count, 1, 32, 32) normal images."""
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)


def agree(ours: Tensor, theirs: Tensor, share: float = 0.95, within: float = 1e-3) -> None:
    """The gate: no timing while two ways disagree.

    Rounding can push an activation over a kink and with it a whole sample elsewhere, so a few
    samples of a guided trajectory may differ; see the tests for agreement without kinks.
    """
    apart = (ours - theirs).abs().flatten(1).amax(1) / theirs.abs().max()
    assert (apart <= within).float().mean() >= share, f"differences: {apart.tolist()}"
