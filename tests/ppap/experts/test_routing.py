"""Which timesteps belong to which expert."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppap.diffusion.schedule import linear_schedule
from ppap.experts.routing import NoiseRanges


def test_a_boundary_goes_up_or_as_in_the_released_code_down() -> None:
    timesteps = torch.tensor([0, 199, 200, 201, 400, 999])
    ranges = NoiseRanges.equal(5)
    assert ranges.expert_of(timesteps).tolist() == [0, 0, 1, 1, 2, 4]
    published = NoiseRanges(ranges.boundaries, inclusive=True)
    assert published.expert_of(timesteps).tolist() == [0, 0, 0, 1, 1, 4]


def test_equal_ranges_are_equal_however_they_are_written() -> None:
    plain = NoiseRanges((0, 333, 1000))
    for other in ([0, 333, 1000], np.array([0, 333, 1000]), tuple(np.int16([0, 333, 1000]))):
        found = NoiseRanges(other)  # type: ignore[arg-type]
        assert found == plain
        assert hash(found) == hash(plain)
        assert {type(boundary) for boundary in found.boundaries} == {int}


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_ranges_of_equal_log_snr_span_equal_parts_of_it(count: int) -> None:
    schedule = linear_schedule()
    ranges = NoiseRanges.equal_log_snr(count, schedule)
    assert ranges.boundaries[0] == 0
    assert ranges.boundaries[-1] == 1000
    levels = schedule.log_snr[[min(b, 999) for b in ranges.boundaries]]
    widths = -np.diff(levels)
    # A timestep is the finest step there is; at low noise one spans up to 1.1.
    assert np.ptp(widths) < 1.2
    assert widths.sum() == pytest.approx(schedule.log_snr[0] - schedule.log_snr[-1])


def test_balanced_ranges_carry_equal_weight() -> None:
    assert NoiseRanges.balanced(torch.ones(1000), 5) == NoiseRanges.equal(5)
    weights = torch.linspace(0, 1, 1000, dtype=torch.float64)
    ranges = NoiseRanges.balanced(weights, 4)
    sums = [float(weights[slice(*ranges.bounds(n))].sum()) for n in range(4)]
    assert sums == pytest.approx([float(weights.sum()) / 4] * 4, abs=1.0)


def test_balanced_ranges_are_never_empty() -> None:
    spike = torch.zeros(10)
    spike[0] = 1.0
    assert NoiseRanges.balanced(spike, 4).boundaries == (0, 1, 2, 3, 10)
    spike = torch.zeros(10)
    spike[9] = 1.0
    assert NoiseRanges.balanced(spike, 4).boundaries[-1] == 10


@pytest.mark.parametrize(
    "weights",
    [
        *(torch.zeros(5), -torch.ones(5), torch.ones(2)),
        *(torch.tensor([1, 2, value, 1, 1]) for value in (float("inf"), float("nan"))),
    ],
)
def test_weights_that_cannot_be_balanced_are_refused(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        NoiseRanges.balanced(weights, 3)


@pytest.mark.parametrize(
    ("count", "boundaries"),
    [
        (1, (0, 1000)),
        (3, (0, 333, 666, 1000)),
        (5, (0, 200, 400, 600, 800, 1000)),
        (8, (0, 125, 250, 375, 500, 625, 750, 875, 1000)),
    ],
)
def test_equal_ranges_are_the_papers(count: int, boundaries: tuple[int, ...]) -> None:
    assert NoiseRanges.equal(count).boundaries == boundaries


def test_boundary_timesteps_go_to_the_upper_range() -> None:
    ranges = NoiseRanges.equal(5)
    t = torch.tensor([0, 199, 200, 399, 400, 600, 800, 999])
    assert ranges.expert_of(t).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]


def test_every_timestep_has_the_expert_whose_range_holds_it() -> None:
    ranges = NoiseRanges((0, 7, 50, 333, 1000))
    experts = ranges.expert_of(torch.arange(1000))
    for number in range(4):
        low, high = ranges.bounds(number)
        assert (experts[low:high] == number).all()


@pytest.mark.parametrize("outside", [-1, 1000])
def test_timesteps_outside_are_refused(outside: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        NoiseRanges.equal(5).expert_of(torch.tensor([0, outside]))


@pytest.mark.parametrize("boundaries", [(0,), (1, 5), (0, 5, 5), (0, 5, 3)])
def test_ranges_that_are_none_are_refused(boundaries: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increase from 0"):
        NoiseRanges(boundaries)
