"""DPM-Solver++ against diffusers, against the exact solution, and guided as DDIM is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.sampling import sample, trajectory
from ppap.diffusion.schedule import linear_schedule
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, images, normal_denoiser, tiny_denoiser, tiny_predictor


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers', of numpy 2
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("make", [tiny_denoiser, lambda: normal_denoiser(0.2, 0.3)])
def test_images_are_those_of_diffusers(make: Any, order: Any, spacing: Any) -> None:
    denoiser, seeds = make(), [3, 4]
    for steps in (8, 20):  # below and above the 15 where diffusers changes its mind on the end
        sampler = DPMSolver(steps, order, timestep_spacing=spacing, clip=False)
        ours = list(trajectory(denoiser, seeds, sampler=sampler))
        scheduler = DPMSolverMultistepScheduler(
            beta_start=1e-4, beta_end=0.02, solver_order=order, timestep_spacing=spacing
        )
        scheduler.set_timesteps(steps)
        assert [step.timestep for step in ours] == scheduler.timesteps.tolist()
        x = ours[0].x_t
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser.network(x, t.expand(2)), t, x).prev_sample
        torch.testing.assert_close(ours[-1].x, x, rtol=1e-5, atol=1e-5)


def test_the_second_order_converges_as_one() -> None:
    # For normal data the probability-flow equation has a solution in closed form.
    mean, std = 0.2, 0.3
    denoiser, x_T = normal_denoiser(mean, std), images(2).double()  # noqa: N806

    def moments(timestep: int) -> tuple[float, float]:
        level = denoiser.schedule.alphas_cumprod[timestep]
        return math.sqrt(level) * mean, math.sqrt(level * std**2 + 1 - level)

    (noisy_mean, noisy_std), (later_mean, later_std) = moments(999), moments(300)
    exact = later_mean + later_std * (x_T - noisy_mean) / noisy_std

    def error(order: Any, steps: int) -> float:
        sampler = DPMSolver(steps, order, last=300, clip=False)
        schedule, x, memory = sampler.respace(denoiser.schedule), x_T, None
        for index in range(steps - 1, 0, -1):
            t = torch.full((2,), int(schedule.timesteps[index]))
            update = sampler.step(schedule, index, x, denoiser(x, t), memory=memory)
            x, memory = update.x, update.memory
        return float((x - exact).abs().max())

    assert error(1, 21) / error(1, 41) == pytest.approx(2, rel=0.2)
    assert error(2, 21) / error(2, 41) == pytest.approx(4, rel=0.3)
    assert error(2, 41) < error(1, 41) / 5


def test_the_first_order_is_ddim() -> None:
    guide = LikelihoodGuide(lambda x, t: x.mean((2, 3)), ClassTask(), [0, 2, 1], 40.0)
    first = sample(tiny_denoiser(), 3, guide, DPMSolver(8, order=1, last=80))
    torch.testing.assert_close(
        first, sample(tiny_denoiser(), 3, guide, DDIM("8 to 80")), rtol=0, atol=1e-5
    )


def test_sampling_ends_above_zero_with_the_predicted_image() -> None:
    denoiser = tiny_denoiser()
    for sampler in (DPMSolver(8, last=80), DDIM("8 to 80"), DDIM("8 to 80", eta=0.5)):
        steps = list(trajectory(denoiser, [0, 1], sampler=sampler))
        assert [steps[0].timestep, steps[-1].timestep, len(steps)] == [999, 80, 8]
        with torch.no_grad():
            epsilon = denoiser(steps[-1].x_t, torch.full((2,), 80)).epsilon
        level = denoiser.schedule.alphas_cumprod[80]
        x_0 = (steps[-1].x_t - math.sqrt(1 - level) * epsilon) / math.sqrt(level)
        torch.testing.assert_close(steps[-1].x, x_0.clamp(-1, 1), rtol=0, atol=1e-5)


def test_a_guide_moves_the_image_ahead_by_the_shift_of_the_noise() -> None:
    schedule = linear_schedule().respace("8 to 80")
    x, epsilon, gradient = (images(3, seed) for seed in range(3))
    sampler = DPMSolver(8, last=80, clip=False)
    guided = sampler.step(schedule, 3, x, Prediction(epsilon), gradient)
    level = float(schedule.alphas_cumprod[3])
    shifted = epsilon - math.sqrt(1 - level) * gradient
    plain = sampler.step(schedule, 3, x, Prediction(shifted))
    torch.testing.assert_close(guided.x, plain.x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.memory, guided.x_0)


def test_mixed_indices_are_the_same_steps_one_by_one() -> None:
    schedule = linear_schedule().respace("linspace10")
    x, epsilon, before = (images(4, seed) for seed in range(3))
    index, sampler = torch.tensor([9, 0, 4, 4]), DPMSolver(10)
    mixed = sampler.step(schedule, index, x, Prediction(epsilon), memory=before)
    for row, at in enumerate(index.tolist()):
        part = slice(row, row + 1)
        alone = sampler.step(schedule, at, x[part], Prediction(epsilon[part]), memory=before[part])
        torch.testing.assert_close(mixed.x[part], alone.x)


def test_batches_do_not_share_their_memory() -> None:
    predictor = tiny_predictor()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.9 * x_t + t[:, None, None, None] / 1000)

    denoiser = Denoiser(network, linear_schedule(), SHAPE)
    guide = LikelihoodGuide(lambda x, t: predictor(x), ClassTask(), torch.arange(7) % 5, 2.0)
    together = sample(denoiser, 7, guide, DPMSolver(8, last=80))
    for batch in (1, 3):
        apart = sample(denoiser, 7, guide, DPMSolver(8, last=80), batch=batch)
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="orders 1 and 2, got 3"):
        DPMSolver(order=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="omit one"):
        DPMSolver(last=80, timestep_spacing="trailing")
    for sampler in (DPMSolver(10, last=991), DPMSolver(2000)):
        with pytest.raises(ValueError, match="steps"):
            sample(tiny_denoiser(), 1, sampler=sampler)
