"""A preset is sampler, path and precision under one name; what is given beside it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from ppap.compute import compiler, precision
from ppap.compute.precision import PrecisionError
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import Guide
from ppap.diffusion.sampling import Step
from ppap.diffusion.schedule import Schedule, linear_schedule
from ppap.diffusion.stepping import StepGuideError
from ppap.fast import kept, presets
from ppap.fast.kept import forget_paths
from ppap.fast.path import FastPath
from ppap.fast.presets import PRESETS, Preset
from ppap.fast.sampling import sample
from ppap.guidance.guides import naive_guide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.calibrated import calibrated
from ppap.guidance.methods.mpgd import MPGD
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.guidance.wrappers import SignalWeighted
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from tests.ppap.networks import SHAPE, tiny_denoiser, tiny_predictor

COUNT = 3


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FastPath]]:
    """The fast paths that are made, none of them compiled; there is a compiler."""
    found: list[FastPath] = []

    def path(denoiser: Denoiser, batch: int, **options: object) -> FastPath:
        found.append(FastPath(denoiser, batch, compile=False, **options))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(kept, "FastPath", path)
    monkeypatch.setattr(presets, "has_compiler", lambda: True)
    forget_paths()
    yield found
    forget_paths()


def visited(denoiser: Denoiser, preset: str | Preset, **options: object) -> list[int]:
    """The timesteps of a trajectory, lowest first."""
    steps: list[Step] = []
    sample(denoiser, COUNT, preset=preset, on_step=steps.append, **options)  # type: ignore[arg-type]
    return [step.timestep for step in reversed(steps)]


def test_fast_is_eight_steps_to_80_on_the_fast_path(made: list[FastPath]) -> None:
    denoiser = tiny_denoiser()
    timesteps = visited(denoiser, "fast")
    assert len(timesteps) == 8
    assert (timesteps[0], timesteps[-1]) == (80, 999)
    assert [path.precision for path in made] == ["fp32"]
    plain = sample(denoiser, COUNT, None, DPMSolver(8, last=80), fast=False)
    torch.testing.assert_close(sample(denoiser, COUNT, preset="fast"), plain, atol=1e-4, rtol=0)


def test_standard_is_ddim_25_on_the_plain_path(made: list[FastPath]) -> None:
    denoiser = tiny_denoiser()
    found = sample(denoiser, COUNT, preset="standard")
    assert torch.equal(found, sample(denoiser, COUNT, None, DDIM(25), fast=False))
    assert not made


@pytest.mark.parametrize("length", [4000, 1000, 100, 40])
def test_the_last_timestep_is_in_proportion_to_the_schedule(length: int) -> None:
    network = tiny_denoiser().network
    timesteps = visited(Denoiser(network, linear_schedule(length), SHAPE), "fast")
    assert len(timesteps) == 8
    assert (timesteps[0], timesteps[-1]) == (length * 8 // 100, length - 1)
    assert PRESETS["standard"].sampler_for(length) == DDIM(25)
    assert PRESETS["fast"].sampler_for(length) == DPMSolver(8, last=length * 8 // 100)


def test_a_schedule_of_every_second_timestep_ends_as_near_the_image_as_all_do() -> None:
    network, whole = tiny_denoiser().network, linear_schedule()
    even = Schedule(whole.alphas_cumprod[::2], whole.timesteps[::2])
    timesteps = visited(Denoiser(network, even, SHAPE), "fast")
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (80, 998, 8)


def test_what_is_given_beside_a_preset_takes_its_place(
    made: list[FastPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = tiny_denoiser()
    assert len(visited(denoiser, "fast", fast=False)) == 8
    assert not made
    assert len(visited(denoiser, "fast", sampler=DDIM(3))) == 3
    assert len(made) == 1
    assert len(visited(denoiser, "standard", fast=True)) == 25
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    visited(denoiser, "fast", precision="bf16")
    assert made[-1].precision == "bf16"
    own = FastPath(denoiser, COUNT, compile=False, precision="bf16")
    before = len(made)
    visited(denoiser, "fast", fast=own)  # whose precision counts, too
    assert len(made) == before


def test_a_preset_of_ones_own_may_take_bfloat16_where_it_is_native(
    made: list[FastPath], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser = tiny_denoiser()
    mine = Preset(DDIM(2), fast=True, precision="auto")
    for native, expected in ((True, "bf16"), (False, "fp32")):
        for name in ("native_bfloat16", "quick_bfloat16"):
            monkeypatch.setattr(precision, name, lambda native=native: native)
        visited(denoiser, mine)
        assert made[-1].precision == expected
    assert "no native bfloat16: computing in float32" in caplog.text
    with pytest.raises(PrecisionError, match="would emulate bfloat16"):
        visited(denoiser, replace(mine, precision="bf16"))


def test_the_plain_path_runs_where_no_compiler_is(
    made: list[FastPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "has_compiler", lambda: False)
    assert len(visited(tiny_denoiser(), "fast")) == 8
    assert not made


def test_a_compiler_is_looked_for_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiler.has_compiler()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler 'no-such-compiler'"):
        assert not compiler.can_compile()


def test_what_is_no_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown preset 'quick'; choose from standard, fast"):
        sample(tiny_denoiser(), COUNT, preset="quick")
    with pytest.raises(TypeError, match=r"a preset is a name or a ppap\.Preset, got DDIM"):
        sample(tiny_denoiser(), COUNT, preset=DDIM(5))  # type: ignore[arg-type]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("preset", "changed"), [("held-back", SignalWeighted), ("calibrated", calibrated)]
)
def test_what_a_preset_does_to_the_guide_comes_besides_fewer_steps(
    preset: str, changed: Callable[[Guide, float], Guide]
) -> None:
    denoiser, guide = tiny_denoiser(), naive_guide(tiny_predictor(), ClassTask(), [0, 1, 2], 20.0)
    expected = sample(denoiser, COUNT, changed(guide, 0.5), DPMSolver(8, last=80), fast=False)
    found = sample(denoiser, COUNT, guide, preset=preset)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert (found - sample(denoiser, COUNT, guide, preset="fast")).abs().max() > 1e-2
    unguided = sample(denoiser, COUNT, preset=preset)
    torch.testing.assert_close(unguided, sample(denoiser, COUNT, preset="fast"), rtol=0, atol=0)


def test_held_back_refuses_a_guide_that_makes_whole_steps() -> None:
    likelihood = ImageLikelihood(tiny_predictor(), ClassTask(), torch.tensor([0, 1, 2]))
    with pytest.raises(StepGuideError, match="makes whole steps"):
        sample(tiny_denoiser(), COUNT, MPGD(likelihood, 1.0), preset="held-back")


def test_calibrated_leaves_depths_as_they_are() -> None:
    towards = naive_guide(lambda x: x.mean(1, keepdim=True), DepthTask(), torch.rand(1, 8, 8), 20.0)
    found = sample(tiny_denoiser(), COUNT, towards, preset="calibrated", fast=False)
    expected = sample(tiny_denoiser(), COUNT, towards, preset="fast", fast=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_preset_may_calibrate_and_hold_back() -> None:
    denoiser, guide = tiny_denoiser(), naive_guide(tiny_predictor(), ClassTask(), [0, 1, 2], 20.0)
    both = Preset(DDIM(5), signal_power=0.25, marginal=0.0)
    expected = sample(denoiser, COUNT, SignalWeighted(calibrated(guide, 0.0), 0.25), DDIM(5))
    torch.testing.assert_close(sample(denoiser, COUNT, guide, preset=both), expected)


def test_calibrated_refuses_what_has_no_logits() -> None:
    likelihood = ImageLikelihood(tiny_predictor(), ClassTask(), torch.tensor([0, 1, 2]))
    with pytest.raises(StepGuideError, match="makes whole steps"):
        sample(tiny_denoiser(), COUNT, MPGD(likelihood, 1.0), preset="calibrated")
    with pytest.raises(TypeError, match="calibrated logits are for a guide by a noise-aware"):
        sample(tiny_denoiser(), COUNT, X0Gradient(likelihood), preset="calibrated")
