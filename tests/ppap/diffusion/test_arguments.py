"""What is none of what it is to be is refused at the door, by its kind and with the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from ppap.diffusion import sampling
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.experts.transfer import transfer
from ppap.fast.sampling import sample, synthesize
from ppap.guidance.diffusers_pipeline import GuidedScheduler
from ppap.guidance.guides import SumOfGuides
from ppap.guidance.likelihoods import SumOfLikelihoods
from ppap.guidance.wrappers import GuidanceInterval
from tests.ppap.networks import tiny_denoiser, tiny_predictor


def bank() -> ExpertBank:
    return ExpertBank(tiny_predictor(), 2, Adapter((Biases(),)))


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a network": (lambda draw: draw(nn.Identity(), 2), r"ppap\.Denoiser\(.*got Identity"),
    "a bank": (lambda draw: draw(tiny_denoiser(), 2, bank()), r"guide\(target, scale\)"),
    "a target": (lambda draw: draw(tiny_denoiser(), 2, 207), "a guide has targets .* got int"),
    "a likelihood": (
        lambda draw: draw(tiny_denoiser(), 2, bank().likelihood(1)),
        r"^NoisyLikelihood is a likelihood, .* ppap\.X0Gradient\(likelihood, scale\)$",
    ),
    "a scale": (
        lambda draw: draw(tiny_denoiser(), 2, bank().guide(1, lambda signal: None)),
        r"function of abar gives \(B,\) numbers or one, got None$",
    ),
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


OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "an interval of a bank": (lambda: GuidanceInterval(cast(Any, bank())), "take its guide"),
    "a sum of banks": (lambda: SumOfGuides(cast(Any, (bank(), bank()))), "take its guide"),
    "a sum of one guide": (lambda: SumOfGuides(cast(Any, bank().guide(1))), "guides, got .* alone"),
    "likelihoods of banks": (
        lambda: SumOfLikelihoods(cast(Any, (bank(), bank()))),
        r"got ExpertBank; take its likelihood\(target\)$",
    ),
    "likelihoods of guides": (
        lambda: SumOfLikelihoods((cast(Any, bank().guide(1)),)),
        r"got LikelihoodGuide; such as ppap\.ImageLikelihood",
    ),
    "a pipeline's guide": (
        lambda: GuidedScheduler(DDIMScheduler(), cast(Any, bank())),
        "take its guide",
    ),
    "a denoiser's schedule": (
        lambda: Denoiser(nn.Identity(), cast(Any, "linear"), (3, 8, 8)),
        "schedule .* got str$",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_put_together_says_what_it_takes(kind: str) -> None:
    make, said = OTHERS[kind]
    with pytest.raises(TypeError, match=said):
        make()


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
