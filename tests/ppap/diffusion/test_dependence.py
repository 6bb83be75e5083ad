"""What lets an image depend on more than its seed is said, once, and nothing else is."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import linear_schedule
from ppap.guidance.guides import naive_guide
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from tests.ppap.networks import SHAPE, tiny_denoiser, tiny_predictor


class AlwaysOn(nn.Module):
    """Dropout that does not heed the mode."""

    def forward(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        return F.dropout(x, 0.5)


def of_its_batch() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())


def drawing() -> nn.Module:
    return nn.Sequential(AlwaysOn(), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "said"),
    [(of_its_batch, "an image depends on its batch"), (drawing, "more than its seed")],
)
def test_a_guide_that_depends_on_more_than_the_sample_is_told_once(
    make: Callable[[], nn.Module], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    guide = naive_guide(Predictor(make()), ClassTask(), 0, 3.0)
    for _ in range(2):
        sample(tiny_denoiser(), 4, guide, DDIM(3), batch=2)
    (message,) = caplog.messages
    assert said in message


def test_so_is_a_denoiser_that_draws(caplog: pytest.LogCaptureFixture) -> None:
    sample(Denoiser(AlwaysOn(), linear_schedule(), SHAPE), 2, None, DDIM(3))
    (message,) = caplog.messages
    assert "draws random numbers of its own" in message


def test_what_is_drawn_once_before_the_second_step_is_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by a network that is traced, or that fills a table, at its first call."""

    class Settling(nn.Module):
        table: Tensor | None = None

        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.randn(3, 8, 8)
            return self.table + x

    sample(Denoiser(Settling(), linear_schedule(), SHAPE), 2, None, DDIM(3))
    assert not caplog.messages


def test_what_heeds_the_mode_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.InstanceNorm2d(3), nn.Flatten())
    guide = naive_guide(Predictor(network.train()), ClassTask(), 0, 3.0)
    denoiser, other = tiny_denoiser(), naive_guide(tiny_predictor(), ClassTask(), 0, 3.0)
    state = torch.get_rng_state()
    sample(denoiser, 2, guide, DDIM(3, eta=1.0))
    sample(denoiser, 2, other, DDIM(3))
    assert torch.equal(state, torch.get_rng_state())
    assert not caplog.records
