"""Muon: orthogonal updates of a known size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ablations.zoo.muon import ADAM_SIZE, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_singular_values_come_near_one_whatever_the_gradients_size(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_matrices_made_orthogonal_together_and_alone_agree() -> None:
    matrices = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(0))
    together = orthogonalised(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalised(matrix[None])[0], found)
        torch.testing.assert_close(orthogonalised(matrix.T[None])[0], found.T)


def test_a_step_has_the_size_of_adams_whatever_the_gradients() -> None:
    weight = nn.Parameter(torch.zeros(32, 64, 3, 3))
    optimiser = Muon([weight], learning_rate=0.01)
    weight.grad = 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    # Singular values lie between 0.7 and 1.1, not at one: 9 % less on average.
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.01 * ADAM_SIZE, rel=0.3)


def test_biases_are_refused() -> None:
    with pytest.raises(ValueError, match="leave biases and norms to AdamW"):
        Muon([nn.Parameter(torch.zeros(8))], learning_rate=0.01)
