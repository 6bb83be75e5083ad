"""What every method promises: scale 0 is no guidance, a seed alone decides, all fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.diffusers_scheduler import DiffusersSampler
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.sampling import Step, sample
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.diffusion.stepping import AnyGuide, SamplingStep, StepGuide, StepGuideError
from ppap.fast.path import FastPath
from ppap.guidance import METHODS
from ppap.guidance.diffusers_pipeline import GuidedScheduler
from ppap.guidance.guides import SumOfGuides
from ppap.guidance.likelihoods import (
    ImageLikelihood,
    Likelihood,
    NoisyLikelihood,
    SumOfLikelihoods,
)
from ppap.guidance.methods.base import LikelihoodMethod
from ppap.guidance.methods.dps import DPS
from ppap.guidance.methods.freedom import FreeDoM
from ppap.guidance.wrappers import (
    ClippedGradient,
    GradientReuse,
    GuidanceInterval,
    SignalWeighted,
)
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from tests.ppap.networks import SHAPE, tiny_denoiser

SEEDS = (3, 11, 7)
TARGETS = [2, 0, 1]
ANCESTRAL = DDIM(5, eta=1.0)
SAMPLERS: dict[str, Sampler] = {
    "DDIM": DDIM(5),
    "DDIM, eta 1": ANCESTRAL,
    "DDPM": DDPM(5),
    "DPM-Solver++": DPMSolver(5),
}
BY_DENOISER = ("classifier-free", "autoguidance")
LOOK_AT_X_T = ("adm-g", "signal-weighted", "calibrated")
OPTIONS: dict[str, dict[str, Any]] = {
    "lgd-mc": {"samples": 2},
    "freedom": {"recurrence": 2},
    "universal": {"backward_steps": 1, "recurrence": 2},
    "tfg": {"samples": 2, "sigma": 0.1, "iterations": 1, "recurrence": 2},
    "fk-steering": {"particles": 6, "every": 2},
}


def classify(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Three logits, smooth; of another temperature at every timestep."""
    logits = 3 * x.mean((2, 3)).tanh()
    return logits if t is None else logits * (1 + t[:, None] / 1000)


def clean(targets: Any = TARGETS) -> ImageLikelihood:
    return ImageLikelihood(classify, ClassTask(), targets)


def noisy(targets: Any = TARGETS) -> NoisyLikelihood:
    return NoisyLikelihood(classify, ClassTask(), targets)


def labelled_denoiser(labels: Sequence[int] | None = None) -> Denoiser:
    """The shared one, pushed by a condition."""

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        push = 0.1 * (y - 1)[:, None, None, None]
        return torch.tanh(0.9 * x + t[:, None, None, None] / 1000) + push

    denoiser = Denoiser(network, linear_schedule(), SHAPE)
    return denoiser.with_conditions(y=torch.tensor(TARGETS if labels is None else labels))


def make(name: str, scale: Any = 2.0, likelihood: Likelihood | None = None) -> AnyGuide:
    """Of every method one that repeats, redraws and looks ahead where it can."""
    if name in BY_DENOISER:
        return METHODS[name](labelled_denoiser(), scale)
    if likelihood is None:
        likelihood = noisy() if name in LOOK_AT_X_T else clean()
    return METHODS[name](likelihood, scale, **OPTIONS.get(name, {}))


def draw(guide: AnyGuide | None, sampler: Sampler = ANCESTRAL, **options: Any) -> Tensor:
    return sample(tiny_denoiser(), SEEDS, guide, sampler, **options)


def samplers(name: str) -> list[Sampler]:
    """Those that the method's paper allows."""
    return [s for s in SAMPLERS.values() if name != "fk-steering" or s.stochastic]


@pytest.mark.parametrize("name", METHODS)
def test_scale_0_is_the_unguided_sample_bit_for_bit(name: str) -> None:
    for sampler in samplers(name):
        free = draw(None, sampler)
        assert torch.equal(draw(make(name, 0), sampler), free)
        assert torch.equal(draw(make(name, lambda signal: 0 * signal), sampler), free)
        assert not torch.allclose(draw(make(name), sampler), free)


@pytest.mark.parametrize("name", METHODS)
def test_only_the_samples_of_scale_0_are_unguided(name: str) -> None:
    for sampler in samplers(name):
        found, free, steered = (
            draw(make(name, scale), sampler) for scale in ([0.0, 2.0, 0.0], 0, 2.0)
        )
        torch.testing.assert_close(found[::2], free[::2], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1], steered[1], rtol=0, atol=1e-5)


def test_an_observer_sees_that_the_samples_of_scale_0_were_not_guided() -> None:
    class Pushing(LikelihoodMethod):
        def guided(self, step: SamplingStep) -> Update:
            update = step.take()
            return replace(update, x=update.x + 1, gradient=torch.ones_like(update.x))

    seen: list[Step] = []
    draw(Pushing(clean(), [0.0, 2.0, 0.0]), DDIM(2), on_step=seen.append)
    for step in seen:
        assert step.gradient is not None
        assert [bool(row.any()) for row in step.gradient] == [False, True, False]


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_depends_on_its_seed_alone(name: str) -> None:
    for sampler in samplers(name):
        together = draw(make(name), sampler)
        torch.testing.assert_close(draw(make(name), sampler, batch=1), together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BY_DENOISER])
def test_several_targets_guide_at_once_and_experts_stand_in_for_a_clean_predictor(
    name: str,
) -> None:
    depth = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    sides = (
        NoisyLikelihood(lambda x, t: x[:, :1], DepthTask(), depth, 3.0),
        noisy() if name in LOOK_AT_X_T else clean(),
    )
    both = draw(make(name, 1.0, SumOfLikelihoods(sides)))
    alone = [draw(make(name, 1.0, side)) for side in sides]
    assert both.isfinite().all()
    assert all(not torch.allclose(both, one, atol=1e-4) for one in alone)


@pytest.mark.parametrize("name", sorted({*METHODS} - {*BY_DENOISER, "fk-steering"}))
def test_guidance_makes_the_target_more_likely(name: str) -> None:
    def likelihood(guide: AnyGuide | None) -> float:
        x = draw(guide)
        return float(ClassTask().log_likelihood(classify(x), torch.tensor(TARGETS)).mean())

    scale = 0.2 if name in ("adam", "dps") else 20.0
    assert likelihood(make(name, scale)) > likelihood(None) + 0.01


@pytest.mark.parametrize("name", METHODS)
def test_the_fast_path_makes_the_same_steps(name: str) -> None:
    guide = make(name)
    fast = FastPath(tiny_denoiser(), 3, compile=False)
    found = sample(fast.denoiser, SEEDS, guide, ANCESTRAL, stepper=fast.step)
    torch.testing.assert_close(found, draw(guide), rtol=0, atol=1e-4)


STEP_GUIDES = [name for name in METHODS if isinstance(make(name), StepGuide)]


@pytest.mark.parametrize("name", STEP_GUIDES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda guide: SumOfGuides((guide,)),
        lambda guide: GuidanceInterval(guide, last=500),
        lambda guide: GradientReuse(guide, 2),
        lambda guide: ClippedGradient(guide, 1.0),
        SignalWeighted,
        lambda guide: GuidedScheduler(DDPMScheduler(), guide),
    ],
    ids=["sum", "interval", "reuse", "clipping", "weight", "diffusers"],
)
def test_what_works_on_gradients_refuses_methods_that_make_whole_steps(
    name: str, wrap: Callable[[AnyGuide], object]
) -> None:
    with pytest.raises(StepGuideError, match="makes whole steps"):
        wrap(make(name))


def test_the_methods_that_give_a_gradient() -> None:
    assert set(METHODS) - set(STEP_GUIDES) == {*LOOK_AT_X_T, "x0-gradient"}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers', of numpy 2
def test_a_step_is_repeated_from_the_same_memory_of_a_scheduler_of_diffusers() -> None:
    """Such a scheduler changes as it steps; repeating a step must not make it go on."""
    theirs = DiffusersSampler(DPMSolverMultistepScheduler(beta_schedule="linear"), 5)
    found = draw(FreeDoM(clean(), 2.0, recurrence=2), theirs)
    assert found.isfinite().all()
    state = [draw(FreeDoM(clean(), 1e-30, recurrence=1), theirs), draw(None, theirs)]
    torch.testing.assert_close(*state, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("freedom", {"recurrence": 0}, "recurrence is a whole number from 1 on"),
        ("universal", {"backward_steps": -1}, "backward_steps is a whole number from 0 on"),
        ("tfg", {"samples": 1.5}, "samples is a whole number"),
        ("tfg", {"rho_spread": "rising"}, "choose from increase, decrease, constant"),
        ("tfg", {"sigma_spread": "increase"}, "choose from decrease, constant"),
        ("lgd-mc", {"samples": 0}, "samples is a whole number from 1 on"),
        ("adam", {"beta2": 1.0}, r"decays lie in \[0, 1\)"),
        ("adam", {"enters": "before"}, "enters 'after' or as a 'gradient'"),
        ("fk-steering", {"potential": "sum"}, "'difference' or 'max'"),
        ("fk-steering", {"particles": 0}, "particles is a whole number from 1 on"),
        ("tfg", {"clip": -1.0}, "TFG: clip must be finite and above 0, got -1.0"),
        ("universal", {"clip": 0}, "clip must be finite and above 0"),
        ("mpgd", {"clip": -0.5}, "clip must be finite and above 0"),
        ("fk-steering", {"clip": float("nan")}, "clip must be finite"),
        ("tfg", {"rho": float("nan")}, "TFG: rho must be finite"),
        ("elucd", {"gamma": float("inf")}, "EluCD: gamma must be finite"),
        ("dps", {"scale": float("nan")}, "must be finite"),
        ("mpgd", {"scale": [1.0, 2.0]}, "one per sample"),
    ],
)
def test_wrong_options_are_refused_where_they_are_given(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS[name](clean(), **options)


@pytest.mark.parametrize("wrong", ["7.5", None, {"scale": 1.0}])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_a_scale_that_is_none(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="a guidance scale is a number, numbers or a function"):
        make(name, wrong)


def test_counts_may_be_numpys() -> None:
    assert METHODS["fk-steering"](clean(), particles=np.int64(2)).particles == 2


def test_guides_of_different_lengths_and_weights_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of targets"):
        SumOfLikelihoods((clean(), clean([0, 1])))
    with pytest.raises(ValueError, match="must be finite"):
        ImageLikelihood(classify, ClassTask(), 0, float("inf"))
    for name in LOOK_AT_X_T:
        with pytest.raises(TypeError, match="X0Gradient"):
            METHODS[name](clean())
    with pytest.raises(ValueError, match="3 seeds need as many targets"):
        draw(DPS(clean([0, 1])))
