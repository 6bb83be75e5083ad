"""Samplers against closed forms, and a sample's dependence on its seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample, trajectory
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.tasks import ClassTask
from tests.ppap.networks import SHAPE, images, tiny_denoiser, tiny_predictor

SAMPLERS = [DDIM(5), DDIM(10, eta=1.0), DDPM(6), DDPM(6, fixed_variance="small")]


def normal_denoiser(mean: float, std: float) -> Denoiser:
    """The exact denoiser of data distributed as N(mean, std^2) in every pixel."""
    schedule = linear_schedule()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        level = torch.from_numpy(schedule.alphas_cumprod)[t][:, None, None, None].float()
        variance = level * std**2 + 1 - level
        return (1 - level).sqrt() * (x_t - level.sqrt() * mean) / variance

    return Denoiser(network, schedule, SHAPE)


@pytest.mark.parametrize(
    "sampler", [DDIM(500, clip=False), DDIM(1000, eta=1.0, clip=False), DDPM(1000, clip=False)]
)
def test_an_exact_denoiser_gives_the_data_distribution(sampler: Sampler) -> None:
    x = sample(normal_denoiser(0.2, 0.1), 100, sampler=sampler)
    # The mean and spread of 19 200 draws are off by 0.0007 and 0.5 %, by chance that the seeds
    # fix; steps that are not infinitely small add 3 % of spread.
    assert x.mean().item() == pytest.approx(0.2, abs=0.005)
    assert x.std().item() == pytest.approx(0.1, rel=0.1)


def test_guidance_moves_the_mean_by_the_predicted_amount() -> None:
    # The gradient of log N(x_0; c, v) times the data's prior is again normal: for a guide
    # that gives d/dx_t log p(y | x_t) exactly, sampling ends at the posterior's mean.
    mean, std, target, error = 0.0, 0.3, 0.4, 0.3
    schedule = linear_schedule()
    posterior = (mean / std**2 + target / error**2) / (1 / std**2 + 1 / error**2)

    class Exact:
        target_count = None

        def __call__(self, state: State) -> Tensor:
            x_t, level = state.x_t, float(schedule.alphas_cumprod[int(state.timesteps[0])])
            slope = math.sqrt(level) * std**2 / (level * std**2 + 1 - level)
            x_0 = mean + slope * (x_t - math.sqrt(level) * mean)
            spread = std**2 * (1 - level) / (level * std**2 + 1 - level)
            return slope * (target - x_0) / (error**2 + spread)

        def rows(self, chosen: slice) -> Exact:
            return self

    for sampler in (DDIM(250, clip=False), DDPM(500, clip=False)):
        x = sample(normal_denoiser(mean, std), 100, Exact(), sampler)
        assert x.mean().item() == pytest.approx(posterior, abs=0.01)
        assert x.std().item() == pytest.approx(1 / math.sqrt(1 / std**2 + 1 / error**2), rel=0.06)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_of_seven_is_seven_batches_of_one(sampler: Sampler) -> None:
    predictor, targets = tiny_predictor(), torch.arange(7) % 5
    guide = LikelihoodGuide(lambda x, t: predictor(x), ClassTask(), targets, scale=3.0)
    together = sample(tiny_denoiser(), 7, guide, sampler)
    one_by_one = sample(tiny_denoiser(), 7, guide, sampler, batch=1)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scale_zero_is_unguided(sampler: Sampler) -> None:
    predictor = tiny_predictor()
    guide = LikelihoodGuide(lambda x, t: predictor(x), ClassTask(), torch.zeros(3).long(), 0.0)
    guided = sample(tiny_denoiser(), 3, guide, sampler)
    # DDIM's shifted noise is recomputed from the image: equal but for rounding.
    torch.testing.assert_close(
        guided, sample(tiny_denoiser(), 3, sampler=sampler), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mixed_indices_are_the_same_steps_one_by_one(sampler: Sampler) -> None:
    schedule = linear_schedule().respace("ddim25")
    x, epsilon, gradient, noise = (images(4, seed) for seed in range(4))
    index = torch.tensor([24, 0, 7, 7])
    mixed = sampler.step(schedule, index, x, Prediction(epsilon), gradient, noise)
    for row, at in enumerate(index.tolist()):
        part = slice(row, row + 1)
        alone = sampler.step(
            schedule, at, x[part], Prediction(epsilon[part]), gradient[part], noise[part]
        )
        torch.testing.assert_close(mixed.x[part], alone.x)
        torch.testing.assert_close(mixed.x_0[part], alone.x_0)


def test_full_eta_has_the_ancestral_steps_moments() -> None:
    schedule = linear_schedule().respace("250")
    x, epsilon = images(1, 1), images(1, 2)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    for index in (1, 100, 249):
        ddim, ddpm = (
            [sampler.step(schedule, index, x, Prediction(epsilon), noise=n).x for n in (zero, one)]
            for sampler in (DDIM(eta=1.0, clip=False), DDPM(fixed_variance="small", clip=False))
        )
        torch.testing.assert_close(ddim, ddpm, rtol=1e-4, atol=1e-4)


def test_learned_variance_reaches_both_ends() -> None:
    schedule = linear_schedule().respace("50")
    zero, one = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)
    for fraction, log_variance in (
        (-1.0, schedule.posterior_log_variance),
        (1.0, np.log(schedule.betas)),
    ):
        prediction = Prediction(zero, fraction * one)
        stepped = DDPM(clip=False).step(schedule, 20, zero, prediction, noise=one).x
        assert stepped.mean().item() == pytest.approx(math.exp(0.5 * log_variance[20]), rel=1e-4)


def test_trajectory_visits_the_original_timesteps_downwards() -> None:
    visited = [step.timestep for step in trajectory(tiny_denoiser(), [0], sampler=DDIM(5))]
    assert visited == [800, 600, 400, 200, 0]


def test_seeds_and_targets_must_match() -> None:
    guide = LikelihoodGuide(lambda x, t: x, ClassTask(), torch.zeros(2).long())
    with pytest.raises(ValueError, match="3 seeds"):
        sample(tiny_denoiser(), 3, guide, DDIM(5))


def test_steps_that_need_noise_say_so() -> None:
    x = images(1)
    with pytest.raises(ValueError, match="noise"):
        DDIM(eta=0.5).step(linear_schedule(), 5, x, Prediction(x))
    with pytest.raises(ValueError, match="noise"):
        DDPM().step(linear_schedule(), 5, x, Prediction(x))
