"""Figures of unguided samples that need no labels."""

from __future__ import annotations

import pytest
import torch

from ablations.zoo.judging import COMPONENTS, PixelComponents


def images(count: int, seed: int, spread: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(count, 1, 12, 12, generator=generator)).clamp(-1, 1)


def test_the_reference_is_at_no_distance_from_itself() -> None:
    reference = images(400, seed=1)
    components = PixelComponents.of(images(400, seed=0), reference)
    assert components.axes.shape == (144, COMPONENTS)
    assert components.distance(reference) == pytest.approx(0, abs=1e-6)


def test_the_distance_of_a_shift_is_its_square_along_the_components() -> None:
    reference = images(400, seed=1)
    components = PixelComponents.of(images(400, seed=0), reference)
    shift = 0.5 * components.axes[:, -1].reshape(1, 1, 12, 12)
    assert components.distance(reference + shift) == pytest.approx(0.25, rel=1e-3)


def test_duller_images_are_further_than_other_images_of_the_kind() -> None:
    components = PixelComponents.of(images(400, seed=0), images(400, seed=1))
    alike, dull = images(400, seed=2), images(400, seed=2, spread=0.1)
    assert components.distance(dull) > 3 * components.distance(alike)
