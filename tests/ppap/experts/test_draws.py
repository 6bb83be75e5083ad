"""What training steps draw: of the seed and the step alone, on the device that trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.diffusion.streams import derived_generator
from ppap.experts import draws
from ppap.experts.draws import Draws

SHAPE = torch.Size((40, 3, 4, 4))
DRAWS = Draws(seed=7, batch=6, device=torch.device("cpu"))


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    first = DRAWS.step(5, SHAPE, [(0, 1000)])
    DRAWS.step(6, SHAPE, [(0, 1000)])
    again = DRAWS.step(5, SHAPE, [(0, 1000)])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = DRAWS.step(6, SHAPE, [(0, 1000)])
    assert not torch.equal(first[2], other[2])


def test_on_a_cpu_one_stream_gives_images_timesteps_and_noise_in_turn() -> None:
    chosen, timesteps, noise = DRAWS.step(5, SHAPE, [(0, 10), (10, 1000)])
    stream = derived_generator(7, 5)
    assert torch.equal(chosen, torch.randint(40, (6,), generator=stream))
    assert torch.equal(timesteps[:3], torch.randint(0, 10, (3,), generator=stream))
    assert torch.equal(timesteps[3:], torch.randint(10, 1000, (3,), generator=stream))
    assert torch.equal(noise, torch.randn(6, 3, 4, 4, generator=stream))


def test_elsewhere_noise_is_drawn_on_the_device_from_a_stream_of_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU plays the GPU, with another stream."""
    asked: list[torch.device] = []

    def stream(*numbers: int, device: torch.device | None = None) -> torch.Generator:
        asked.extend([device] if device else [])
        return derived_generator(*numbers, int(device is not None))

    plain = torch.randn

    def normal(*shape: Any, device: torch.device, **options: Any) -> Tensor:
        return plain(*shape, **options)

    monkeypatch.setattr(draws, "derived_generator", stream)
    monkeypatch.setattr(torch, "randn", normal)
    gpu = Draws(seed=7, batch=6, device=torch.device("cuda"))
    chosen, timesteps, noise = gpu.step(5, SHAPE, [(0, 1000)])
    assert asked == [torch.device("cuda")]
    on_cpu = DRAWS.step(5, SHAPE, [(0, 1000)])
    assert torch.equal(chosen, on_cpu[0])
    assert torch.equal(timesteps, on_cpu[1])
    assert not torch.equal(noise, on_cpu[2])
    assert torch.equal(noise, gpu.step(5, SHAPE, [(0, 1000)])[2])
    assert not torch.equal(noise, gpu.step(6, SHAPE, [(0, 1000)])[2])
