"""What is none of what it is to be is refused at the door, by its kind and with the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppap.diffusion import sampling
from ppap.diffusion.ddim import DDIM
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.experts.transfer import transfer
from ppap.fast.sampling import sample, synthesize
from tests.ppap.networks import tiny_denoiser, tiny_predictor


def bank() -> ExpertBank:
    return ExpertBank(tiny_predictor(), 2, Adapter((Biases(),)))


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a network": (lambda draw: draw(nn.Identity(), 2), r"ppap\.Denoiser\(.*got Identity"),
    "a bank": (lambda draw: draw(tiny_denoiser(), 2, bank()), r"guide\(target, scale\)"),
    "a target": (lambda draw: draw(tiny_denoiser(), 2, 207), "a guide has targets .* got int"),
    "a class": (lambda draw: draw(tiny_denoiser(), 2, None, DDIM), "such as ppap.DDIM"),
    "steps": (lambda draw: draw(tiny_denoiser(), 2, None, 25), r"such as ppap\.DDIM\(25\), got 25"),
    "a batch": (lambda draw: draw(tiny_denoiser(), 2, batch="4"), "batch is a whole number"),
    "noise": (lambda draw: draw(tiny_denoiser(), 2, x_T=[0, 0]), "x_T is a tensor .* got list"),
}


@pytest.mark.parametrize("draw", [sample, sampling.sample], ids=["fast", "plain"])
@pytest.mark.parametrize("kind", CALLS)
def test_sampling_says_what_it_takes(kind: str, draw: Callable[..., object]) -> None:
    call, said = CALLS[kind]
    with pytest.raises(TypeError, match=said):
        call(draw)


def test_synthesis_says_what_it_takes() -> None:
    with pytest.raises(TypeError, match="Denoiser"):
        synthesize(nn.Identity(), 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="such as"):
        synthesize(tiny_denoiser(), 2, 25)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images", [[torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4, np.zeros((4, 3, 8, 8), np.uint8)]
)
def test_training_says_what_it_takes(images: Any) -> None:
    with pytest.raises(TypeError, match="as one tensor"):
        transfer(bank(), tiny_denoiser(), images)
