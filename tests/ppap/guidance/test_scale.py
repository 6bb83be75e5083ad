"""Guidance scales: a number, one per sample, or a function of the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.likelihoods import NoisyLikelihood
from ppap.guidance.methods.adm_g import classifier_guidance
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import images, tiny_denoiser


def guide(scale: Any, targets: Any = (0, 1, 2, 0)) -> LikelihoodGuide:
    return LikelihoodGuide(lambda x, t: x.mean((2, 3)), ClassTask(), targets, scale)


@pytest.mark.parametrize("scales", [[1.0, 5.0, 0.0, -2.5], torch.tensor([1.0, 5.0, 0.0, -2.5])])
def test_each_sample_has_its_own_scale(scales: Any) -> None:
    together = sample(tiny_denoiser(), 4, guide(scales), DDIM(5), batch=3)
    for seed, scale in enumerate(scales):
        alone = guide(float(scale), [0, 1, 2, 0][seed])
        torch.testing.assert_close(
            together[seed : seed + 1], sample(tiny_denoiser(), [seed], alone, DDIM(5)),
            rtol=0, atol=1e-5,
        )  # fmt: skip


def test_a_scale_may_follow_the_noise_level() -> None:
    denoiser, x, t = tiny_denoiser(), images(4), torch.tensor([0, 300, 600, 999])
    level = denoiser.schedule.signal(t)
    rising = guide(lambda signal: 3 * signal.sqrt())(State(x, t, denoiser))
    plain = guide(1.0)(State(x, t))
    torch.testing.assert_close(rising, plain * 3 * level.sqrt()[:, None, None, None])
    constant = sample(denoiser, 4, guide(lambda signal: 7.0), DDIM(5))
    assert torch.equal(constant, sample(denoiser, 4, guide(7.0), DDIM(5)))


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_what_a_function_gives_is_weighed_whatever_it_is(weight: float) -> None:
    denoiser, x, t = tiny_denoiser(), images(4), torch.tensor([0, 300, 600, 999])
    state = State(x, t, denoiser)
    likelihood = NoisyLikelihood(lambda x, t: x.mean((2, 3)), ClassTask(), [0, 1, 2, 0], weight)
    each = weight * guide([1.0, 2.0, 3.0, 4.0])(state)
    for given in ([1.0, 2.0, 3.0, 4.0], np.arange(1.0, 5.0), torch.arange(1, 5)):
        found = classifier_guidance(likelihood, lambda signal, given=given: given)(state)
        torch.testing.assert_close(found, each)
    with pytest.raises(TypeError, match=r"gives .* numbers or one, got None"):
        classifier_guidance(likelihood, lambda signal: None)(state)


def test_an_image_of_scale_0_is_unguided_whatever_its_gradient() -> None:
    def overflowing(x: Tensor, t: Tensor) -> Tensor:
        rising = torch.tensor([math.inf, 1.0, 1.0, 1.0])[:, None]
        return x.flatten(1)[:, :5] * rising

    denoiser, seeds = tiny_denoiser(), [0, 1, 2, 3]
    given = overflowing, ClassTask(), torch.arange(4)
    found = sample(denoiser, seeds, LikelihoodGuide(*given, [0.0, 0.0, 2.0, 3.0]), DDIM(5))
    plain = sample(denoiser, seeds, None, DDIM(5))
    torch.testing.assert_close(found[:2], plain[:2], rtol=0, atol=1e-5)
    assert ((found[2:] - plain[2:]).abs().amax((1, 2, 3)) > 1e-3).all()


def test_a_guide_may_be_made_in_inference_mode() -> None:
    denoiser = tiny_denoiser()
    made: list[Callable[[], Any]] = [
        lambda: guide(2.0, 1),
        lambda: guide([1.0, 2.0], [1, 2]),
        lambda: guide(torch.tensor([1.0, 2.0]), torch.tensor([1, 2])),
    ]
    for make in made:
        with torch.inference_mode():
            found = sample(denoiser, 2, make(), DDIM(3))
        assert torch.equal(found, sample(denoiser, 2, make(), DDIM(3)))


def test_one_target_stands_for_every_sample() -> None:
    denoiser = tiny_denoiser()
    each = sample(denoiser, 4, guide(9.0, [2, 2, 2, 2]), DDIM(5), batch=3)
    for one in (2, [2], torch.tensor(2), torch.tensor([2])):
        assert guide(9.0, one).target_count is None
        assert torch.equal(sample(denoiser, 4, guide(9.0, one), DDIM(5), batch=3), each)
    scales = [1.0, 2.0, 3.0, 4.0]
    assert guide(scales, 2).target_count == 4
    assert torch.equal(
        sample(denoiser, 4, guide(scales, 2), DDIM(5), batch=3),
        sample(denoiser, 4, guide(scales, [2] * 4), DDIM(5), batch=3),
    )


def test_scales_are_checked_at_the_door() -> None:
    for wrong in (math.nan, math.inf, [1.0, math.nan, 1.0, 1.0]):
        with pytest.raises(ValueError, match="finite"):
            guide(wrong)
    for shape in ([1.0, 2.0], torch.ones(4, 1)):
        with pytest.raises(ValueError, match=r"one number or \(4,\)"):
            guide(shape)
    with pytest.raises(ValueError, match="one guidance scale each"):
        guide([1.0, 2.0], 0)(State(images(3), torch.zeros(3).long()))
