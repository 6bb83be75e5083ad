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
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.diffusers_scheduler import DiffusersSampler
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import AnyGuide
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.experts.transfer import transfer
from ppap.fast.sampling import sample, synthesize
from ppap.guidance.diffusers_pipeline import GuidedScheduler
from ppap.guidance.guides import SumOfGuides
from ppap.guidance.likelihoods import ImageLikelihood, SumOfLikelihoods
from ppap.guidance.methods.tfg import TFG
from ppap.guidance.wrappers import GuidanceInterval
from ppap.tasks.classes import ClassTask
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


def test_clipped_latents_are_told_and_clipped_images_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = tiny_denoiser()
    latents = Denoiser(images.network, images.schedule, images.shape, decode=lambda x: x / 8)
    likelihood = ImageLikelihood(lambda x: x.mean((2, 3)), ClassTask(), 1)

    def told(denoiser: Denoiser, guide: AnyGuide | None, sampler: Sampler | None) -> list[str]:
        caplog.clear()
        sampling.sample(denoiser, 1, guide, sampler)
        return [record.getMessage() for record in caplog.records]

    scheduler = DDIMScheduler(beta_schedule="linear")
    for sampler, part, mend in (
        (None, "DDIM", "clip=False"),
        (DDPM(2), "DDPM", "clip=False"),
        (DPMSolver(2), "DPMSolver", "clip=False"),
        (DiffusersSampler(scheduler, 2), "DDIMScheduler", "clip_sample=False"),
    ):
        (line,) = told(latents, None, sampler)
        assert line.startswith(f"{part} clips predicted latents")
        assert line.endswith(f"give it {mend}")
        assert not told(images, None, sampler)
    (line,) = told(latents, TFG(likelihood), DDIM(2, clip=False))
    assert line.startswith("TFG clips")
    assert line.endswith("give it clip=None")
    assert not told(latents, TFG(likelihood, clip=None), DDIM(2, clip=False))
