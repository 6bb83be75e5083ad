"""A model guides, and goes on learning, under the noise that it was made for and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.noise_levels import NoiseLevels, NoiseLevelsError
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.experts.trainer import Trainer
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.checkpoints import CheckpointError
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.methods.dps import DPS
from ppap.guidance.wrappers import GuidanceInterval
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import images, tiny_predictor

SHAPE = (3, 8, 8)
IMAGES = images(8).mul(255).clamp(0, 255).to(torch.uint8)


def denoiser(schedule: Schedule) -> Denoiser:
    return Denoiser(lambda x, t: 0.1 * x, schedule, SHAPE)


def trained(schedule: Schedule) -> ExpertBank:
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Biases(),)))
    transfer(bank, denoiser(schedule), IMAGES, training=Training(4, batch=4))
    return bank


def single(schedule: Schedule) -> Schedule:
    """As a file keeps it: the betas in float32."""
    return Schedule(np.cumprod(1 - schedule.betas.astype(np.float32), dtype=np.float32))


def scaled_linear(steps: int) -> Schedule:
    """Stable Diffusion's."""
    return Schedule(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2))


@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule, scaled_linear])
def test_a_schedule_is_its_own_whatever_it_was_kept_in(make: Callable[[int], Schedule]) -> None:
    NoiseLevels.of(make(1000)).check(make(1000), "it")
    NoiseLevels.of(make(1000)).check(single(make(1000)), "it")
    NoiseLevels.of(single(make(1000))).check(make(1000), "it")


def test_of_next_to_no_signal_one_level_is_as_good_as_another() -> None:
    """Schedules are rescaled to end at pure noise, each library to another next to nothing."""
    ends = [np.append(linear_schedule().alphas_cumprod[:-1], least) for least in (1e-7, 1e-12)]
    first, second = map(Schedule, ends)
    NoiseLevels.of(first).check(second, "it")
    with pytest.raises(NoiseLevelsError, match="at timestep 999"):
        NoiseLevels.of(linear_schedule()).check(second, "it")


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (linear_schedule(1000), cosine_schedule(1000)),
        (cosine_schedule(1000), linear_schedule(1000)),
        (linear_schedule(1000), scaled_linear(1000)),
        (linear_schedule(1000), linear_schedule(500)),
        (linear_schedule(1000), Schedule(linear_schedule(1000).alphas_cumprod ** 1.06)),
    ],
)
def test_another_schedule_is_another(made: Schedule, other: Schedule) -> None:
    with pytest.raises(NoiseLevelsError, match="it is made for"):
        NoiseLevels.of(made).check(other, "it")


def test_a_trained_bank_guides_under_the_noise_it_was_trained_on_alone() -> None:
    bank = trained(cosine_schedule())
    guides = (
        bank.guide(0),
        GuidanceInterval(bank.guide(0), last=500),
        DPS(bank.likelihood(0, on="x_0"), 1.0),
    )
    for guide in guides:
        sample(denoiser(cosine_schedule()), 2, guide, DDIM(2))
        with pytest.raises(NoiseLevelsError, match=r"at timestep \d+ its share of signal"):
            sample(denoiser(linear_schedule()), 2, guide, DDIM(2))


def test_a_bank_that_was_never_trained_is_for_any_noise() -> None:
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Biases(),)))
    for schedule in (linear_schedule(), cosine_schedule()):
        sample(denoiser(schedule), 2, bank.guide(0), DDIM(2))


class OwnClassifier(nn.Module):
    """A model of one's own that says what it was made for."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.noise_levels = NoiseLevels.of(schedule)
        self.layer = nn.Linear(192, 5)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.layer(x_t.flatten(1))


def test_any_model_can_say_what_it_was_made_for() -> None:
    guide = LikelihoodGuide(OwnClassifier(linear_schedule()), ClassTask(), 0)
    sample(denoiser(linear_schedule()), 2, guide, DDIM(2))
    with pytest.raises(NoiseLevelsError, match="OwnClassifier"):
        sample(denoiser(cosine_schedule()), 2, guide, DDIM(2))


def test_training_goes_on_under_the_same_noise_or_begins_anew() -> None:
    bank = trained(cosine_schedule())
    with pytest.raises(NoiseLevelsError, match="the bank is made for another noise schedule"):
        transfer(bank, linear_schedule(), IMAGES, training=Training(4, batch=4, start="own"))
    transfer(bank, cosine_schedule(), IMAGES, training=Training(4, batch=4, start="own"))
    transfer(bank, linear_schedule(), IMAGES, training=Training(4, batch=4, start="base"))
    assert bank.noise_levels == NoiseLevels.of(linear_schedule())
    bank.reset()
    assert bank.noise_levels is None


def test_a_training_that_failed_before_its_first_step_binds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Biases(),)))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            transfer(bank, cosine_schedule(), IMAGES)
    transfer(bank, linear_schedule(), IMAGES, training=Training(4, batch=4))


def test_an_interrupted_training_with_a_file_leaves_the_bank_as_it_was(tmp_path: Path) -> None:
    bank = ExpertBank(tiny_predictor(), 2, Adapter((Biases(),)))

    def stop(done: int, total: int, /, **facts: float) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        transfer(bank, cosine_schedule(), IMAGES, file=file, progress=stop)
    assert bank.noise_levels is None


def test_a_saved_bank_remembers(tmp_path: Path) -> None:
    trained(cosine_schedule()).save(tmp_path)
    bank = ExpertBank.load(tmp_path, tiny_predictor())
    assert bank.noise_levels == NoiseLevels.of(cosine_schedule())
    with pytest.raises(NoiseLevelsError):
        sample(denoiser(linear_schedule()), 2, bank.guide(0), DDIM(2))


def test_a_bank_saved_before_that_is_for_any_noise(tmp_path: Path) -> None:
    trained(cosine_schedule()).save(tmp_path)
    written = json.loads((tmp_path / "bank.json").read_text())
    del written["noise"]
    (tmp_path / "bank.json").write_text(json.dumps(written))
    bank = ExpertBank.load(tmp_path, tiny_predictor())
    assert bank.noise_levels is None
    sample(denoiser(linear_schedule()), 2, bank.guide(0), DDIM(2))


@pytest.mark.parametrize(
    "noise",
    [[], {"steps": 1000}, {"steps": 1000, "log_snr": [1.0]}, {"steps": 5, "log_snr": "x" * 17}],
)
def test_damaged_noise_levels_are_refused(tmp_path: Path, noise: object) -> None:
    trained(cosine_schedule()).save(tmp_path)
    written = json.loads((tmp_path / "bank.json").read_text())
    (tmp_path / "bank.json").write_text(json.dumps(written | {"noise": noise}))
    with pytest.raises(CheckpointError, match=r"no readable bank\.json"):
        ExpertBank.load(tmp_path, tiny_predictor())
