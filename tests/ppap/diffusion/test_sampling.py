"""Samplers against closed forms, and a sample's dependence on its seed alone."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap.compute import precision
from ppap.compute.precision import PrecisionError
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser, Prediction, module_device
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import Step, sample, trajectory
from ppap.diffusion.schedule import Schedule, linear_schedule
from ppap.diffusion.solver import Sampler
from ppap.diffusion.streams import NoiseStreams
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.guidance.wrappers import GradientReuse
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, images, normal_denoiser, tiny_denoiser, tiny_predictor

SAMPLERS = [
    DDIM(5),
    DDIM(10, eta=1.0),
    DDIM("6 to 50"),
    DDPM(6),
    DDPM(6, fixed_variance="small"),
    DDPM("6 to 50"),
]


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(500, clip=False),
        DDIM(1000, eta=1.0, clip=False),
        DDPM(1000, clip=False),
        DPMSolver(500, last=0, clip=False),
    ],
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

    # So many steps that their size adds 1 % of spread at most, as chance does.
    for sampler in (
        DDIM(500, clip=False),
        DDPM(500, clip=False),
        DPMSolver(500, last=0, clip=False),
    ):
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


def test_learned_variance_reaches_both_ends_and_halfway_its_geometric_mean() -> None:
    schedule = linear_schedule().respace("50")
    low, high = schedule.posterior_log_variance, np.log(schedule.betas)
    zero, one = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)
    for fraction, log_variance in (
        (-1.0, low),
        (1.0, high),
        (0.0, (low + high) / 2),  # of the logarithms: Improved DDPM, equation 15
    ):
        prediction = Prediction(zero, fraction * one)
        for index in (1, 20):
            stepped = DDPM(clip=False).step(schedule, index, zero, prediction, noise=one).x
            expected = math.exp(0.5 * log_variance[index])
            assert stepped.mean().item() == pytest.approx(expected, rel=1e-4)


def test_the_last_ancestral_step_adds_no_noise_and_is_guided_by_the_variance_it_has() -> None:
    """The posterior's is 0 there; the published large one is that of the step before."""
    schedule = Schedule(np.array([0.9, 0.45]))  # of variances that differ where it ends
    x, epsilon, gradient, noise = (images(2, seed) for seed in range(4))
    for sampler, variance in (
        (DDPM(fixed_variance="small"), 0.0),
        (DDPM(fixed_variance="large"), schedule.posterior_variance[1]),
    ):
        free, other, guided = (
            sampler.step(schedule, 0, x, Prediction(epsilon), push, drawn).x
            for push, drawn in ((None, noise), (None, -noise), (gradient, noise))
        )
        assert torch.equal(free, other)
        torch.testing.assert_close(guided, free + variance * gradient)


def test_trajectory_visits_the_original_timesteps_downwards() -> None:
    visited = [step.timestep for step in trajectory(tiny_denoiser(), [0], sampler=DDIM(5))]
    assert visited == [800, 600, 400, 200, 0]


@pytest.mark.parametrize("sampler", [*SAMPLERS, DPMSolver(5)])
def test_the_noise_to_begin_with_may_be_given(sampler: Sampler) -> None:
    denoiser, seeds = tiny_denoiser(), [7, 8, 9]
    own = NoiseStreams(seeds, SHAPE).draw()
    free = sample(denoiser, seeds, sampler=sampler)
    given = sample(denoiser, seeds, sampler=sampler, x_T=own, batch=2)
    torch.testing.assert_close(given, free, rtol=0, atol=1e-5)
    assert not torch.allclose(sample(denoiser, seeds, sampler=sampler, x_T=own.flip(0)), free)
    with pytest.raises(ValueError, match=r"x_T must be \(3, 3, 8, 8\)"):
        sample(denoiser, seeds, sampler=sampler, x_T=own[:2])


@pytest.mark.parametrize("sampler", [DDIM(5), DPMSolver(5)])
def test_an_observer_sees_every_step(sampler: Sampler) -> None:
    denoiser, seen = tiny_denoiser(), list[Step]()
    guide = LikelihoodGuide(lambda x, t: x.mean((2, 3)), ClassTask(), [0, 1, 2], 9.0)
    drawn = sample(denoiser, 3, guide, sampler, batch=2, on_step=seen.append)
    assert torch.equal(drawn, sample(denoiser, 3, guide, sampler, batch=2))
    assert [list(step.seeds) for step in seen] == [[0, 1]] * 5 + [[2]] * 5
    assert [step.number for step in seen] == [0, 1, 2, 3, 4] * 2
    for step, after in itertools.pairwise(seen[:5]):
        assert torch.equal(step.x, after.x_t)
        assert step.timestep > after.timestep
    assert torch.equal(seen[4].x.clamp(-1, 1), drawn[:2])
    for step in seen[:5]:
        t = torch.full((2,), step.timestep)
        gradient = guide.rows(slice(2))(State(step.x_t, t))
        torch.testing.assert_close(step.gradient, gradient)
        level = float(denoiser.schedule.alphas_cumprod[step.timestep])
        noise = denoiser(step.x_t, t).epsilon
        clean = ((step.x_t - math.sqrt(1 - level) * noise) / math.sqrt(level)).clamp(-1, 1)
        expected = clean + (1 - level) / math.sqrt(level) * gradient  # clipped, then shifted
        torch.testing.assert_close(step.x_0, expected, rtol=1e-4, atol=1e-4)


def test_a_number_of_seeds_is_a_range_and_progress_counts_images() -> None:
    told: list[tuple[int, int]] = []
    numbered = sample(
        tiny_denoiser(), 5, batch=2, progress=lambda done, total, **_: told.append((done, total))
    )
    assert torch.equal(
        numbered, sample(tiny_denoiser(), [0, 1, 2, 3, 4], sampler=DDIM(25), batch=2)
    )
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert sample(tiny_denoiser(), 0).shape == (0, *SHAPE)
    for wrong in (DDIM(5), 2.5, True, np.array([0.5]), np.array([True]), torch.zeros(2, 2).int()):
        with pytest.raises(TypeError, match="seeds are a number or a sequence"):
            sample(tiny_denoiser(), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "seeds",
    [
        np.int64(2),
        np.array(2),
        torch.tensor(2),
        np.arange(2),
        torch.arange(2),
        np.arange(2).tolist(),
    ],
    ids=repr,
)
def test_seeds_are_numbers_of_any_library(seeds: Any) -> None:
    found = sample(tiny_denoiser(), seeds, sampler=DDIM(2))
    assert torch.equal(found, sample(tiny_denoiser(), 2, sampler=DDIM(2)))


def test_denoiser_and_guide_are_moved_to_the_device() -> None:
    network = torch.nn.Linear(8, 8)

    def where(x_t: Tensor, timesteps: Tensor) -> Tensor:
        del timesteps
        found.append(x_t.device.type)
        raise RuntimeError("seen enough")

    network.forward = where  # type: ignore[method-assign, assignment]
    found: list[str] = []
    denoiser, predictor = Denoiser(network, linear_schedule(), SHAPE), tiny_predictor()
    guides = SumOfGuides((GradientReuse(naive_guide(predictor, ClassTask(), 1), 2),))
    with pytest.raises(RuntimeError, match="seen enough"):
        sample(denoiser, 2, guides, device="meta")
    assert network.weight.device.type == "meta"
    assert predictor.mean.device.type == "meta"
    assert found == ["meta"]


def test_a_function_is_sampled_where_the_network_is_that_it_calls() -> None:
    network, found = torch.nn.Linear(8, 8, device="meta"), list[str]()

    def call(x_t: Tensor, timesteps: Tensor) -> Tensor:
        found.extend((x_t.device.type, timesteps.device.type))
        network(x_t)
        raise RuntimeError("seen enough")

    for denoiser in (
        Denoiser(call, linear_schedule(), SHAPE),
        Denoiser(lambda x, t: x, linear_schedule(), SHAPE, decode=lambda x: network(x)[0]),
    ):
        assert module_device(denoiser).type == "meta"
    with pytest.raises(RuntimeError, match="seen enough"):
        sample(Denoiser(call, linear_schedule(), SHAPE), 2)
    assert found == ["meta", "meta"]
    assert module_device(tiny_denoiser()).type == "cpu"


def test_bfloat16_networks_and_float32_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    kinds: list[torch.dtype] = []

    def network(x_t: Tensor, timesteps: Tensor) -> Tensor:
        del timesteps
        found = layer(x_t)
        kinds.append(found.dtype)
        return found

    denoiser = Denoiser(network, linear_schedule(), SHAPE)
    monkeypatch.setattr(precision, "native_bfloat16", lambda: False)
    with pytest.raises(PrecisionError):
        sample(denoiser, 2, precision="bf16")
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    guide = LikelihoodGuide(lambda x, t: layer(x).mean((2, 3)), ClassTask(), 1, 5.0)
    steps: list[Step] = []
    rough = sample(denoiser, 2, guide, DDIM(5), precision="bf16", on_step=steps.append)
    assert set(kinds) == {torch.bfloat16}
    assert all(step.x.dtype == torch.float32 for step in steps)
    fine = sample(denoiser, 2, guide, DDIM(5))
    assert 0 < (rough - fine).abs().max() < 0.1


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
