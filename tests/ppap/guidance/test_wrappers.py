"""Wrappers in use: what they must leave alone, bit for bit, and what they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.sampling import Step, sample
from ppap.diffusion.solver import Sampler
from ppap.fast.path import FastPath
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.guidance.wrappers import (
    ClippedGradient,
    GradientReuse,
    GuidanceInterval,
    SignalWeighted,
)
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import images, tiny_denoiser, tiny_predictor

SAMPLERS: list[Sampler] = [DDIM(10), DDPM(10), DPMSolver(10)]
TARGETS = torch.arange(4) % 3


class Asked:
    """A model of the mean colour that remembers at which timesteps it was asked."""

    def __init__(self) -> None:
        self.timesteps: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.timesteps.append(int(t[0]))
        return x.mean((2, 3))

    def guide(self) -> LikelihoodGuide:
        return LikelihoodGuide(self, ClassTask(), TARGETS, 30.0)


def drawn(guide: Guide | None, sampler: Sampler, **options: Any) -> Tensor:
    return sample(tiny_denoiser(), 4, guide, sampler, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_wrappers_without_effect_change_nothing(sampler: Sampler) -> None:
    guide = Asked().guide()
    plain = drawn(guide, sampler)
    assert (plain - drawn(None, sampler)).abs().max() > 0.05
    for wrapped in (
        GuidanceInterval(guide),
        GuidanceInterval(guide, 0, 999),
        GradientReuse(guide, 1),
        ClippedGradient(guide, 1e9),
        SignalWeighted(guide, 0.0),
        GradientReuse(ClippedGradient(GuidanceInterval(SumOfGuides((guide,))), 1e9), 1),
    ):
        assert torch.equal(drawn(wrapped, sampler), plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interval_that_no_step_meets_is_no_guide(sampler: Sampler) -> None:
    asked = Asked()
    nowhere = GuidanceInterval(asked.guide(), 1, 50)
    steps: list[Step] = []
    found = sample(tiny_denoiser(), 4, nowhere, sampler, on_step=steps.append)
    met = [step.timestep for step in steps if step.timestep in range(1, 51)]
    assert met == []
    assert torch.equal(found, drawn(None, sampler))
    assert asked.timesteps == []
    assert all(step.gradient is None for step in steps)


def test_an_interval_guides_within_its_bounds_alone() -> None:
    asked = Asked()
    drawn(GuidanceInterval(asked.guide(), 200, 700), DDIM(10))
    assert asked.timesteps == [700, 600, 500, 400, 300, 200]
    guide, x, t = asked.guide(), images(4), torch.tensor([100, 200, 700, 900])
    mixed = GuidanceInterval(guide, 200, 700)(State(x, t))
    assert mixed is not None
    expected = guide(State(x, t)) * torch.tensor([0, 1, 1, 0])[:, None, None, None]
    torch.testing.assert_close(mixed, expected, rtol=0, atol=0)


def test_outside_an_interval_a_gradient_that_is_no_number_does_no_harm() -> None:
    class Broken(Asked):
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return x.mean((2, 3)) * torch.where(t > 700, torch.inf, 1.0)[:, None]

    t = torch.tensor([100, 800, 700, 900])
    found = GuidanceInterval(Broken().guide(), last=700)(State(images(4), t))
    assert found is not None
    assert found.isfinite().all()
    assert not found[1::2].any()


def test_a_gradient_is_reused_between_its_renewals() -> None:
    asked, steps = Asked(), list[Step]()
    drawn(GradientReuse(asked.guide(), 3), DDIM(10), on_step=steps.append)
    assert asked.timesteps == [900, 600, 300, 0]
    for step in steps:
        assert step.gradient is steps[step.number // 3 * 3].gradient


def test_a_gradient_that_was_not_asked_for_yet_is_asked_for_at_once() -> None:
    asked = Asked()
    drawn(GuidanceInterval(GradientReuse(asked.guide(), 3), last=750), DDIM(10))
    assert asked.timesteps == [700, 600, 300, 0]  # the next renewal is due at 600


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_and_calls_share_no_gradient(sampler: Sampler) -> None:
    predictor = tiny_predictor()
    parts = [naive_guide(predictor, ClassTask(), TARGETS, scale) for scale in (1.0, 2.0)]
    guide = SumOfGuides((GradientReuse(parts[0], 3), GradientReuse(parts[1], 4)))
    together = drawn(guide, sampler)
    assert torch.equal(drawn(guide, sampler), together)
    torch.testing.assert_close(drawn(guide, sampler, batch=1), together, rtol=0, atol=1e-4)


def test_a_gradient_is_shortened_sample_by_sample() -> None:
    guide, x, t = Asked().guide(), images(4), torch.full((4,), 9)
    gradient = guide(State(x, t))
    lengths = gradient.flatten(1).norm(dim=1)
    bound = float(lengths.median())
    clipped = ClippedGradient(guide, bound)(State(x, t))
    assert clipped is not None
    factor = (bound / lengths).clamp(max=1)[:, None, None, None]
    torch.testing.assert_close(clipped, gradient * factor)
    assert torch.equal(clipped[lengths <= bound], gradient[lengths <= bound])


def test_wrapped_guides_run_on_the_fast_path() -> None:
    denoiser = tiny_denoiser()
    guide = GradientReuse(GuidanceInterval(Asked().guide(), 200), 2)
    fast = FastPath(denoiser, 4, compile=False)
    found = sample(denoiser, 4, guide, DDIM(10), stepper=fast.step)
    torch.testing.assert_close(found, drawn(guide, DDIM(10)), rtol=0, atol=1e-4)


def test_settings_without_sense_are_refused() -> None:
    guide = Asked().guide()
    for wrong in (
        lambda: GuidanceInterval(guide, 700, 200),
        lambda: GuidanceInterval(guide, -1),
        lambda: GradientReuse(guide, 0),
        lambda: ClippedGradient(guide, 0.0),
    ):
        with pytest.raises(ValueError, match=r"timestep|every|norm"):
            wrong()


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_weighted_guide_is_the_guide_times_a_power_of_the_signal(power: float) -> None:
    denoiser, guide = tiny_denoiser(), Asked().guide()
    state = State(images(4), torch.tensor([0, 300, 600, 999]), denoiser)
    plain, weight = guide(state), denoiser.schedule.signal(state.timesteps) ** power
    assert plain is not None
    found = SignalWeighted(guide, power)(state)
    torch.testing.assert_close(found, plain * weight[:, None, None, None])
    assert SignalWeighted(guide, power).rows(slice(1, 3)).target_count == 2


@pytest.mark.parametrize("power", [-0.5, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match="power"):
        SignalWeighted(Asked().guide(), power)
