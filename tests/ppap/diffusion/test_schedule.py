"""Noise schedules against their definitions."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch

from ppap.diffusion import schedule as schedules
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.schedule import Schedule, cosine_schedule, linear_schedule, make_schedule
from ppap.diffusion.solver import Sampler


@pytest.mark.parametrize("steps", [1000, 100])
def test_linear_betas_are_the_published_ones_and_larger_in_fewer_steps(steps: int) -> None:
    expected = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    np.testing.assert_allclose(linear_schedule(steps).betas, expected, rtol=1e-10)


def test_cosine_signal_follows_its_formula() -> None:
    def level(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [level((i + 1) / 1000) / level(0) for i in range(900)]
    np.testing.assert_allclose(cosine_schedule().alphas_cumprod[:900], expected, rtol=1e-9)


def test_posterior_variance_of_two_steps_by_hand() -> None:
    schedule = Schedule(np.array([0.9, 0.45]))
    np.testing.assert_allclose(schedule.betas, [0.1, 0.5])
    np.testing.assert_allclose(schedule.posterior_variance, [0.0, 0.5 * 0.1 / 0.55])
    np.testing.assert_allclose(np.exp(schedule.posterior_log_variance), 2 * [0.5 * 0.1 / 0.55])


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("ddim25", list(range(0, 1000, 40))),
        ("4", [0, 333, 666, 999]),
        (1, [0]),
        ("2,1,1", [0, 333, 334, 667]),
        ("8 to 80", [80, 211, 343, 474, 605, 736, 868, 999]),
        # glide-text2im's space_timesteps(1000, "fast27")
        (
            "fast27",
            [
                0,
                22,
                44,
                66,
                88,
                111,
                133,
                155,
                177,
                199,
                200,
                222,
                244,
                266,
                288,
                311,
                333,
                355,
                377,
                399,
                400,
                500,
                599,
                600,
                799,
                800,
                997,
            ],
        ),
    ],
)
def test_respacing_keeps_the_published_timesteps(spacing: str | int, expected: list[int]) -> None:
    full = linear_schedule()
    short = full.respace(spacing)
    assert short.timesteps.tolist() == expected
    np.testing.assert_allclose(short.alphas_cumprod, full.alphas_cumprod[expected], rtol=1e-12)


def test_respacing_twice_remembers_the_original_timesteps() -> None:
    assert linear_schedule().respace("ddim25").respace("ddim5").timesteps.tolist() == [
        0, 200, 400, 600, 800,
    ]  # fmt: skip


def test_the_lowest_timestep_is_one_of_the_schedules_own() -> None:
    even = Schedule(linear_schedule().alphas_cumprod[::2], np.arange(0, 1000, 2))
    assert even.respace("4 to 80").timesteps.tolist() == [80, 386, 692, 998]
    assert DPMSolver(4, last=80).respace(even).timesteps.tolist() == [80, 386, 692, 998]
    for spacing, said in (("4 to 81", "no timestep 81 .* 500 up to 998"), ("4 to 996", "not fit")):
        with pytest.raises(ValueError, match=said):
            even.respace(spacing)


@pytest.mark.parametrize("spacing", ["ddim600", "ddim", "0", "25.5", "600,600", "ten", "-3", ""])
def test_malformed_spacing_is_refused(spacing: str) -> None:
    with pytest.raises(ValueError, match=r"steps|spacing"):
        linear_schedule().respace(spacing)


@pytest.mark.parametrize("levels", [[], [0.5, 0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0]])
def test_levels_that_are_no_schedule_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        Schedule(np.array(levels))


def test_unknown_name_names_the_choices() -> None:
    with pytest.raises(ValueError, match="linear, cosine"):
        make_schedule("sigmoid")


def test_signal_levels_are_those_of_the_table_bit_for_bit() -> None:
    schedule = cosine_schedule()
    timesteps = torch.tensor([999, 0, 500, 0])
    expected = torch.from_numpy(schedule.alphas_cumprod[timesteps.numpy()].astype(np.float32))
    for _ in range(2):
        assert torch.equal(schedule.signal(timesteps), expected)


@pytest.mark.parametrize("schedule", [linear_schedule(), linear_schedule().respace("500")])
def test_timesteps_beyond_either_end_are_refused(schedule: Schedule) -> None:
    """An index of -1 would be the last timestep: all noise, where none is meant."""
    one = torch.ones(2, 1, 1, 1)
    for wrong in (-1, -20, 1000):
        t = torch.tensor([0, wrong])
        with pytest.raises(ValueError, match=f"from 0 to 999, got {wrong}$"):
            schedule.signal(t)
        with pytest.raises(ValueError, match=f"from 0 to 999, got {wrong}$"):
            schedule.add_noise(one, t, one)
    for kind in (torch.tensor([0.0, 9.0]), torch.tensor([True, False]), 5):
        with pytest.raises(TypeError, match="a tensor of integers, got"):
            schedule.add_noise(one, kind, one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"2 images need one timestep each, .*, got \(3,\)"):
        schedule.add_noise(one, torch.tensor([0, 1, 9]), one)
    with pytest.raises(ValueError, match=r"got \(\)"):
        schedule.add_noise(one, torch.tensor(9), one)
    bytes_of = torch.from_numpy(schedule.timesteps[:2]).byte()
    assert torch.equal(schedule.signal(bytes_of), schedule.signal(bytes_of.long()))


def test_a_schedule_of_some_timesteps_looks_levels_up_by_these() -> None:
    short = linear_schedule().respace("500")
    timesteps = torch.from_numpy(short.timesteps)
    levels = torch.from_numpy(short.alphas_cumprod)
    assert torch.equal(short.signal(timesteps), levels.float())
    one = torch.ones(500, 1, 1, 1, dtype=torch.float64)
    noised = short.add_noise(one, timesteps, 0 * one)
    torch.testing.assert_close(noised[:, 0, 0, 0], levels.sqrt())
    assert 500 not in short.timesteps
    assert short.signal(torch.tensor([500])).isnan()
    assert not short.is_whole
    assert linear_schedule().is_whole


def test_signal_levels_are_looked_up_where_the_timesteps_are() -> None:
    found = cosine_schedule().signal(torch.zeros(2, dtype=torch.int64, device="meta"))
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, (2,))


def test_tables_of_signal_levels_go_with_their_schedule() -> None:
    gone = cosine_schedule(50)
    gone.signal(torch.tensor([3]))
    known = len(schedules._TABLES)
    del gone
    gc.collect()
    assert len(schedules._TABLES) < known


def test_where_little_noise_is_added_it_is_as_much_as_the_schedule_says() -> None:
    """In float32 one less 0.9999 is known to three digits."""
    schedule = linear_schedule()
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    added = schedule.add_noise(zero, torch.tensor([0]), one).item()
    assert added == pytest.approx(math.sqrt(1e-4), rel=1e-7)


def test_noise_has_the_stated_variance_and_signal() -> None:
    schedule = linear_schedule()
    x_0 = torch.full((2000, 1, 8, 8), 0.7)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((2000,), 300)
    x_t = schedule.add_noise(x_0, t, noise)
    level = schedule.alphas_cumprod[300]
    assert x_t.mean().item() == pytest.approx(0.7 * math.sqrt(level), abs=0.01)
    assert x_t.var().item() == pytest.approx(1 - level, rel=0.01)


def test_a_count_without_a_stride_is_told_how_to_be_had() -> None:
    with pytest.raises(ValueError, match=r"exactly 60 of 1000 steps.*DDIM\('60'\)"):
        DDIM(60).respace(linear_schedule())
    spaced = DDIM("60").respace(linear_schedule()).timesteps
    assert (len(spaced), spaced[0], spaced[-1]) == (60, 0, 999)


@pytest.mark.parametrize("sampler", [DPMSolver(1, last=80), DDIM("1 to 80"), DPMSolver(1, last=0)])
def test_one_step_does_not_begin_where_less_noise_is_left(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match=r"one step cannot go from timestep 999 down"):
        sampler.respace(linear_schedule())


@pytest.mark.parametrize("sampler", [DPMSolver(1, last=999), DDIM("1 to 999"), DPMSolver(1)])
def test_one_step_goes_straight_from_noise_to_the_image(sampler: Sampler) -> None:
    assert sampler.respace(linear_schedule()).timesteps.tolist() == [999]
