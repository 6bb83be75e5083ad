"""What `sample` promises of equal seeds, on the networks of the setting ``fashion``."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from ablations.settings.catalogue import load_setting
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample

COUNT = 6
GREY_LEVEL = 2 / 255
GENTLE = 0.2
"""Visible guidance, at which even a turn at a kink moves no pixel by a grey level."""


@cache
def denoiser() -> Denoiser:
    return load_setting("fashion").denoiser()


@cache
def bank_of(predictor: str) -> ExpertBank:
    """Five experts, none of them the predictor itself."""
    bank = ExpertBank(load_setting("fashion").predictor(predictor), 5, ppap_adapter(4, 2.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return bank.eval()


@cache
def fast_path() -> FastPath:
    return FastPath(denoiser(), COUNT, compile=False)


def drawn(predictor: str | None, scale: float, batch: int = COUNT, fast: bool = False) -> Tensor:
    guide = None if predictor is None else bank_of(predictor).guide(torch.arange(COUNT), scale)
    path = fast_path() if fast else False
    return sample(denoiser(), COUNT, guide, DDIM(10), batch=batch, fast=path)


@pytest.mark.parametrize(
    ("predictor", "fast"), [("resnet", False), ("resnet", True), ("vit", False)]
)
def test_equal_batches_give_equal_images_bit_for_bit(predictor: str, fast: bool) -> None:
    """At any scale: what rounds in the same way is amplified in the same way."""
    first = drawn(predictor, 32.0, fast=fast)
    assert torch.equal(first, drawn(predictor, 32.0, fast=fast))


@pytest.mark.parametrize("predictor", ["resnet", "vit"])
def test_gently_guided_images_are_equal_to_a_grey_level(predictor: str) -> None:
    """Whatever the batch size and the path."""
    together = drawn(predictor, GENTLE)
    for others in (
        drawn(predictor, GENTLE, batch=1),
        drawn(predictor, GENTLE, batch=4),
        drawn(predictor, GENTLE, fast=predictor == "resnet"),
    ):
        assert (others - together).abs().max() < GREY_LEVEL
    assert (together - drawn(None, 0.0)).abs().amax((1, 2, 3)).min() > 2 * GREY_LEVEL


def test_unguided_images_are_equal_to_a_hundredth_of_a_grey_level() -> None:
    together = drawn(None, 0.0)
    for others in (drawn(None, 0.0, batch=1), drawn(None, 0.0, fast=True)):
        assert (others - together).abs().max() < 0.01 * GREY_LEVEL
