"""NaN and infinity are named with their row and step, and never become pixels."""

from __future__ import annotations

import math
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.cascade import eight_bit_images
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.sampling import Step, sample, trajectory
from ppap.diffusion.schedule import linear_schedule
from ppap.diffusion.solver import Sampler
from ppap.diffusion.synthesis import synthesize
from ppap.experts.adapters.adapter import full_adapter, ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Supervision
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.fast.path import FastPath
from ppap.files.images import NonFiniteError, from_uint8, to_uint8
from ppap.guidance.diffusers_pipeline import GuidedScheduler
from ppap.guidance.guides import naive_guide
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, images, tiny_denoiser, tiny_predictor

SCHEDULE = linear_schedule()
DATA = to_uint8(images(8, 5).clamp(-1, 1))


def failing(below: int, value: float = math.nan) -> Denoiser:
    """Of the samples whose first number is positive it predicts ``value`` below a timestep."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        bad = (x_t[:, :1, :1, :1] > 0) & (t < below)[:, None, None, None]
        return torch.where(bad, value, 0.5 * x_t)

    return Denoiser(network, SCHEDULE, SHAPE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "sampler", [DDIM(4), DDIM(4, 1.0, clip=False), DDPM(4), DPMSolver(4), DPMSolver(4, clip=False)]
)
def test_what_is_not_finite_is_named_with_its_step(sampler: Sampler, value: float) -> None:
    seen: list[Step] = []
    with pytest.raises(NonFiniteError, match=r"row \d \(seed \d+\) is not finite from step") as e:
        sample(failing(600, value), range(10, 26), sampler=sampler, on_step=seen.append)
    wrong = torch.stack([(step.x_t[:, 0, 0, 0] > 0) & (step.timestep < 600) for step in seen])
    row = int(wrong.any(0).nonzero()[0])
    first = int(wrong[:, row].nonzero()[0])
    assert f"row {row} (seed {10 + row})" in str(e.value)
    assert f"step {first} (timestep {seen[first].timestep})" in str(e.value)
    assert "the denoiser's prediction is not" in str(e.value)


def test_a_trajectory_does_not_end_with_it() -> None:
    steps = trajectory(failing(600), range(6), sampler=DDIM(4))
    with pytest.raises(NonFiniteError, match="of 6 samples"):
        list(steps)


@pytest.mark.parametrize("fast", [False, True])
def test_a_gradient_that_is_not_finite_is_said_to_be_the_cause(fast: bool) -> None:
    denoiser = tiny_denoiser()
    overflowing = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    nn.init.constant_(overflowing[1].weight, 1e38)
    guide = naive_guide(Predictor(overflowing.eval()), ClassTask(), 0, 10.0)
    stepper = FastPath(denoiser, 2, compile=False).step if fast else None
    options = {} if stepper is None else {"stepper": stepper}
    with pytest.raises(NonFiniteError, match="the guide's gradient is not"):
        sample(denoiser, 2, guide, DDIM(2), **options)


def test_a_decoder_that_overflows_is_noticed() -> None:
    network = tiny_denoiser().network
    denoiser = Denoiser(network, SCHEDULE, SHAPE, decode=lambda x: x * math.inf)
    with pytest.raises(NonFiniteError, match="the decoded image"):
        sample(denoiser, 2, sampler=DDIM(2))


def test_synthesis_keeps_what_was_finite_and_stores_nothing_else(tmp_path: Path) -> None:
    """The first shard is of seeds that stay finite; the second is refused whole."""
    first = torch.stack([torch.randn(SHAPE, generator=g)[0, 0, 0] for g in seeded(range(200))])
    start = next(i for i in range(190) if (first[i : i + 2] < 0).all() and first[i + 2] > 0)
    with pytest.raises(NonFiniteError, match=f"seed {start + 2}"):
        synthesize(failing(600), 4, DDIM(4), start, folder=tmp_path, shard=2)
    assert [path.name for path in tmp_path.glob("*.npy")] == ["00000000-00000002.npy"]


def seeded(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_becomes_a_byte(value: float) -> None:
    wrong = images(4).clamp(-1, 1)
    wrong[2, 1, 3, 3] = value
    with pytest.raises(NonFiniteError, match="the image of row 2 is not finite"):
        to_uint8(wrong)
    with pytest.raises(NonFiniteError, match="of row 0"):
        to_uint8(torch.tensor(value))
    with pytest.raises(NonFiniteError, match="of row 2"):
        eight_bit_images(wrong, range(4))


def test_bytes_are_not_made_bytes_again() -> None:
    with pytest.raises(ValueError, match="floating-point images"):
        to_uint8(DATA)


def test_images_for_an_up_sampler_are_what_a_file_would_hold() -> None:
    held = eight_bit_images(images(4).clamp(-1, 1), range(4))["low_res"]
    assert torch.equal(to_uint8(held).float() / 127.5 - 1, held)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_every_byte(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every).to(dtype)), every)


def test_a_teacher_that_is_not_finite_is_refused() -> None:
    predictor = tiny_predictor()
    with torch.no_grad():
        predictor.network.fc.bias[2] = math.nan
    bank = ExpertBank(predictor, 2, ppap_adapter(2, 2.0))
    with pytest.raises(NonFiniteError, match="the prediction of tiny for a clean image"):
        transfer(bank, SCHEDULE, DATA, Distillation(), Training(steps=2, batch=4))


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    bank = ExpertBank(tiny_predictor(), 1, full_adapter())
    training = Training(steps=50, batch=4, learning_rate=1e18)
    with pytest.raises(NonFiniteError, match=r"the loss of step \d+ is"):
        transfer(bank, SCHEDULE, DATA, Supervision(torch.zeros(8).long()), training)


def test_floating_point_images_are_no_training_set() -> None:
    bank = ExpertBank(tiny_predictor(), 1)
    with pytest.raises(ValueError, match=r"uint8 images, got torch\.float32"):
        transfer(bank, SCHEDULE, images(4), training=Training(steps=1, batch=4))


@pytest.mark.parametrize(("bank_steps", "steps"), [(4000, 1000), (1000, 4000), (500, 1000)])
def test_a_bank_guides_no_schedule_of_another_length(bank_steps: int, steps: int) -> None:
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2, 2.0), steps=bank_steps)
    denoiser = tiny_denoiser(steps)
    with pytest.raises(ValueError, match=f"of {bank_steps} timesteps, .* has {steps}"):
        sample(denoiser, 2, bank.guide(0), DDIM(5))
    wrapped = naive_guide(lambda x: bank.eval().predict(x, 0), ClassTask(), 0)
    with pytest.raises(ValueError, match=f"of {bank_steps} timesteps"):
        next(trajectory(denoiser, range(2), wrapped, DDIM(5)))


def test_a_pipelines_schedule_and_gradients_are_looked_at_too() -> None:
    plain = diffusers.schedulers.scheduling_ddim.DDIMScheduler(clip_sample=False)
    long = ExpertBank(tiny_predictor(), 2, ppap_adapter(2, 2.0), steps=4000)
    guided = GuidedScheduler(plain, long.guide(0))
    guided.set_timesteps(2)
    x = images(2)
    with pytest.raises(ValueError, match="of 4000 timesteps"):
        guided.step(x, guided.timesteps[0], x)
    nothing = naive_guide(lambda images: images.mean((2, 3)) / 0, ClassTask(), 0)
    guided = GuidedScheduler(plain, nothing)
    guided.set_timesteps(2)
    with pytest.raises(NonFiniteError, match=r"at step 0 \(timestep \d+\) the guide's gradient"):
        guided.step(x, guided.timesteps[0], x)
