"""Log-likelihoods as methods see them: of a state, of an image, in sums, and around an image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.likelihoods import (
    AtLeastNoise,
    ImageLikelihood,
    NoisyLikelihood,
    SumOfLikelihoods,
    clean_gradient,
    noisy_gradient,
)
from ppap.guidance.methods.adm_g import classifier_guidance
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from tests.ppap.networks import SHAPE, images, tiny_denoiser

TIMESTEPS = torch.tensor([10, 700])
CLEAN = ImageLikelihood(lambda x: 3 * x.mean((2, 3)), ClassTask(), [2, 0])
NOISY = NoisyLikelihood(lambda x, t: x.mean((2, 3)) * (1 + t[:, None] / 500), ClassTask(), [1, 2])


def state_of(denoiser: Denoiser | None = None) -> State:
    return State(images(2), TIMESTEPS, denoiser or tiny_denoiser())


def test_a_clean_predictor_sees_the_predicted_image_clipped_and_then_jittered() -> None:
    state, jitter = state_of(), images(2, 3)
    shown = state.x_0().clamp(-0.5, 0.5) + jitter
    expected = ClassTask().log_likelihood(3 * shown.mean((2, 3)), torch.tensor([2, 0]))
    torch.testing.assert_close(CLEAN.of_state(state, jitter, 0.5), expected)
    torch.testing.assert_close(CLEAN.of_image(shown, state), expected)


def test_a_jitter_of_the_image_is_one_of_its_share_in_x_t() -> None:
    state, jitter = state_of(), images(2, 3)
    share = state.signal.sqrt()[:, None, None, None]
    expected = NOISY.of_state(state.at(state.x_t + share * jitter))
    torch.testing.assert_close(NOISY.of_state(state, jitter), expected)
    torch.testing.assert_close(NOISY.of_image(state.x_0() + jitter, state), expected)
    assert torch.equal(NOISY.of_state(state, None, 0.01), NOISY.of_state(state)), "x_t is no image"


def test_a_gradient_in_the_image_is_its_share_of_that_in_x_t() -> None:
    state = state_of()
    in_x_t, _ = noisy_gradient(NOISY, state)
    share = state.signal.sqrt()[:, None, None, None]
    torch.testing.assert_close(clean_gradient(NOISY, state.x_0(), state), share * in_x_t)


def test_likelihoods_add_each_by_its_weight() -> None:
    state, jitter, x_0 = state_of(), images(2, 3), images(2, 4)
    both = SumOfLikelihoods((replace(CLEAN, weight=2.0), replace(NOISY, weight=0.5)))
    alone = [2 * CLEAN.of_state(state, jitter, 0.5), 0.5 * NOISY.of_state(state, jitter, 0.5)]
    torch.testing.assert_close(both.of_state(state, jitter, 0.5), sum(alone))
    alone = [2 * CLEAN.of_image(x_0, state), 0.5 * NOISY.of_image(x_0, state)]
    torch.testing.assert_close(both.of_image(x_0, state), sum(alone))


def test_over_several_jitters_the_likelihood_is_their_mean_and_not_its_logarithms() -> None:
    state, jitters = state_of(), [images(2, 3), images(2, 4)]
    _, found = noisy_gradient(CLEAN, state, jitters)
    each = torch.stack([CLEAN.of_state(state, jitter) for jitter in jitters])
    torch.testing.assert_close(found, each.exp().mean(0).log())


def test_of_latents_the_predictor_sees_the_decoded_image() -> None:
    denoiser = Denoiser(
        lambda x, t: 0.5 * x, linear_schedule(), SHAPE, decode=lambda latent: latent.tanh()
    )
    state, latent = state_of(denoiser), images(2, 4)
    plain = CLEAN.of_image(latent.tanh(), state_of())
    torch.testing.assert_close(CLEAN.of_image(latent, state), plain)


def test_a_noise_aware_model_sees_a_clean_image_as_one_of_timestep_0() -> None:
    asked: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return x.mean((2, 3))

    x = images(3)
    assert torch.equal(AtLeastNoise(model)(x), x.mean((2, 3)))
    (timesteps,) = asked
    assert timesteps.tolist() == [0, 0, 0]
    assert timesteps.dtype == torch.int64


def test_a_likelihoods_weight_multiplies_a_scale_of_any_form() -> None:
    state = state_of()
    for scale in (2.0, [2.0, 2.0], lambda signal: 2.0):
        plain = classifier_guidance(NOISY, scale)(state)
        found = classifier_guidance(replace(NOISY, weight=3.0), scale)(state)
        assert plain is not None
        torch.testing.assert_close(found, 3 * plain)


def test_one_map_is_the_target_of_every_sample() -> None:
    one = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    state = state_of()
    single, each = (
        LikelihoodGuide(lambda x, t: x[:, :1], DepthTask(), targets)(state)
        for targets in (one, one.repeat(2, 1, 1))
    )
    assert torch.equal(single, each)
