"""A draw depends on its seed alone."""

from __future__ import annotations

import pytest
import torch

from ppap.diffusion.streams import NoiseStreams, derived_generator


def test_each_stream_is_its_own() -> None:
    together = NoiseStreams([3, 1, 4], (2, 5, 5))
    alone = NoiseStreams([1], (2, 5, 5))
    for _ in range(3):
        assert torch.equal(together.draw()[1:2], alone.draw())


def test_draws_are_standard_normal_and_differ() -> None:
    streams = NoiseStreams(range(500), (1, 8, 8))
    first, second = streams.draw(), streams.draw()
    assert first.mean().item() == pytest.approx(0, abs=0.02)
    assert first.std().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.02
    assert torch.corrcoef(first.flatten(1))[0, 1].abs() < 0.5


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_collide_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be from 0 to 4294967295"):
        NoiseStreams([seed], (1,))


def test_derived_generators_differ_in_every_number() -> None:
    seeds = {derived_generator(*n).initial_seed() for n in ((0, 1), (1, 0), (0, 2), (0,), (1, 1))}
    assert len(seeds) == 5
