"""Preconditioned: the linear part is the best there is, and what is left has unit variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.schedule import linear_schedule

SCHEDULE = linear_schedule()
SPREAD = 0.4


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen = torch.empty(0)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.seen = x
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("timestep", [0, 200, 500, 999])
def test_of_gaussian_images_nothing_is_left_to_the_network_but_unit_variance(timestep: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = SPREAD * torch.randn(64, 1, 32, 32, generator=generator)
    noise = torch.randn(x_0.shape, generator=generator)
    t = torch.full((len(x_0),), timestep)
    level = SCHEDULE.signal(t)[:, None, None, None]
    velocity = level.sqrt() * noise - (1 - level).sqrt() * x_0
    x_t = SCHEDULE.add_noise(x_0, t, noise)

    inner = Constant(0.0)
    preconditioned = Preconditioned(inner, SCHEDULE, SPREAD)
    left = (velocity - preconditioned(x_t, t)) / preconditioned.output_scale(t)

    assert inner.seen.std() == pytest.approx(1, abs=0.01)
    assert left.std() == pytest.approx(1, abs=0.01)
    assert (left * x_t).mean() == pytest.approx(0, abs=0.01)


def test_the_networks_output_is_added_in_units_of_the_output_scale() -> None:
    x_t, t = torch.zeros(3, 1, 4, 4), torch.tensor([0, 500, 999])
    preconditioned = Preconditioned(Constant(2.0), SCHEDULE, SPREAD)
    expected = 2 * preconditioned.output_scale(t).expand_as(x_t)
    torch.testing.assert_close(preconditioned(x_t, t), expected)


def test_conditions_reach_the_network() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor, mask: Tensor) -> Tensor:
            return mask.expand_as(x)

    x_t, t, mask = torch.zeros(3, 1, 4, 4), torch.tensor([0, 500, 999]), torch.ones(3, 1, 4, 4)
    preconditioned = Preconditioned(Told(), SCHEDULE, SPREAD)
    expected = preconditioned.output_scale(t).expand_as(x_t)
    torch.testing.assert_close(preconditioned(x_t, t, mask=mask), expected)
