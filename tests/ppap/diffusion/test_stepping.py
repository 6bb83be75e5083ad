"""The sampler's step as an object: whose noise it takes, and how it goes back to the noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import SamplingStep
from ppap.diffusion.streams import NoiseStreams
from tests.ppap.networks import SHAPE, images, tiny_denoiser

INDEX = 2
ANCESTRAL = DDIM(5, eta=1.0)


def step_of(
    sampler: Sampler = ANCESTRAL,
    denoiser: Denoiser | None = None,
    noise: Tensor | None = None,
    **options: Any,
) -> SamplingStep:
    """A step of two samples at index 2 of 5."""
    denoiser = denoiser or tiny_denoiser()
    schedule = sampler.respace(denoiser.schedule)
    timesteps = torch.full((2,), int(schedule.timesteps[INDEX]))
    state = State(images(2), timesteps, denoiser, **({"seeds": (5, 6)} | options))
    return SamplingStep(sampler, schedule, INDEX, state, noise)


def test_the_unguided_steps_noise_is_taken_once_and_every_further_step_has_its_own() -> None:
    sampler, noise = ANCESTRAL, images(2, 9)
    step = step_of(noise=noise)
    plain = step.plain().x
    assert torch.equal(step.take().x, plain)
    assert torch.equal(step.plain().x, plain), "what is unguided has used up no noise"
    fresh, given = step_of(), (step.schedule, INDEX, step.state.x_t)
    for _ in range(2):
        expected = sampler.step(*given, step.state.prediction(), None, fresh.draw()).x
        assert torch.equal(step.take().x, expected)


def test_noise_that_is_not_given_is_drawn_once_for_the_unguided_step() -> None:
    step = step_of()
    plain = step.plain().x
    assert torch.equal(step.take().x, plain)
    assert torch.equal(step.plain().x, plain)
    assert not torch.equal(step.take().x, plain)
    late = step_of()
    assert torch.equal(late.take().x, plain)
    assert torch.equal(late.plain().x, plain)


def test_fresh_noise_is_each_samples_own_and_another_at_every_step() -> None:
    first = step_of(number=0).draw()
    assert torch.equal(step_of(number=0).draw(), first)
    assert torch.equal(step_of(number=0, seeds=(6, 5)).draw(), first.flip(0))
    draws = [first, step_of(number=1).draw(), NoiseStreams((5, 6), SHAPE).draw()]
    for row in range(2):
        cosines = torch.corrcoef(torch.stack([draw[row].flatten() for draw in draws]))
        assert (cosines - torch.eye(3)).abs().max() < 0.3, "192 numbers, none drawn twice"


def test_renoised_images_are_back_at_the_noise_of_the_step() -> None:
    step, x = step_of(), images(2, 3)
    kept = 1 - step.schedule.betas[INDEX]
    expected = math.sqrt(kept) * x + math.sqrt(1 - kept) * step_of().draw()
    back = step.renoise(x)
    torch.testing.assert_close(back.x_t, expected)
    assert torch.equal(back.timesteps, step.state.timesteps)
    assert back.memory is step.state.memory, "of the same trajectory"


def test_another_predicted_noise_leaves_the_learned_variance_as_it_is() -> None:
    denoiser = Denoiser(
        lambda x, t: torch.cat([x.tanh(), x.sin()], 1),
        linear_schedule(),
        SHAPE,
        learned_variance=True,
    )
    step = step_of(DDPM(5), denoiser, images(2, 9))
    other, x_t = images(2, 4), step.state.x_t
    expected = DDPM(5).step(
        step.schedule, INDEX, x_t, Prediction(other, x_t.sin()), None, images(2, 9)
    )
    torch.testing.assert_close(step.take(epsilon=other).x, expected.x)


def test_noise_for_samples_without_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="the state has 1 seeds"):
        step_of(seeds=(5,)).draw()
