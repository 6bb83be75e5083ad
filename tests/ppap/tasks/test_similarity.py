"""Similarity: the scaled cosine, and what it is the logarithm of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppap.tasks.similarity import SimilarityTask


def maps(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


def test_similarity_is_the_scaled_cosine_whatever_the_lengths() -> None:
    found, wanted = maps(3, 7) - 1, maps(3, 7, seed=1) - 1
    cosine = (found * wanted).sum(1) / (found.norm(dim=1) * wanted.norm(dim=1))
    task = SimilarityTask(scale=30.0)
    torch.testing.assert_close(task.log_likelihood(found, wanted), 30 * (cosine - 1))
    torch.testing.assert_close(task.log_likelihood(5 * found, 0.1 * wanted), 30 * (cosine - 1))
    torch.testing.assert_close(task.score(found, wanted), cosine)
    torch.testing.assert_close(task.errors(found, wanted), cosine.acos())
    torch.testing.assert_close(task.transfer_loss(found, wanted), 30 * (1 - cosine).mean())
    torch.testing.assert_close(task.supervised_loss(found, wanted), 30 * (1 - cosine).mean())
    torch.testing.assert_close(task.target(found).norm(dim=1), torch.ones(3).double())


def test_similarity_at_and_opposite_the_target() -> None:
    wanted = maps(2, 5)
    task = SimilarityTask()
    assert task.log_likelihood(2 * wanted, wanted).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert task.log_likelihood(-wanted, wanted).tolist() == pytest.approx([-200, -200])
    assert task.errors(-wanted, wanted).tolist() == pytest.approx([math.pi, math.pi])
    near = wanted + 1e-3 * maps(2, 5, seed=1)
    angle = task.errors(near, wanted)
    torch.testing.assert_close(
        task.log_likelihood(near, wanted), -50 * angle.square(), rtol=1e-5, atol=0
    )


def test_similarity_differs_from_a_von_mises_fisher_density_by_a_constant() -> None:
    """On the circle the density is torch's own von Mises distribution."""
    angles = torch.linspace(-3, 3, 9, dtype=torch.float64)
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    targets = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(9, 2)
    ours = SimilarityTask(scale=4.0).log_likelihood(embeddings, targets)
    mean = torch.tensor(math.atan2(0.8, 0.6), dtype=torch.float64)
    density = torch.distributions.VonMises(mean, torch.tensor(4.0).double()).log_prob(angles)
    torch.testing.assert_close(ours - ours[0], density - density[0])


def test_similarity_gradients_are_those_of_finite_differences() -> None:
    task, targets = SimilarityTask(), maps(2, 6, seed=1)
    prediction = maps(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: task.log_likelihood(x, targets), prediction)
    teacher = maps(2, 6).requires_grad_()
    task.transfer_loss(prediction, teacher).backward()
    assert teacher.grad is None
    assert prediction.grad is not None


def test_embeddings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same model"):
        SimilarityTask().log_likelihood(maps(2, 6), maps(2, 5))
    with pytest.raises(ValueError, match="same model"):
        SimilarityTask().score(maps(2, 6), maps(1, 6))
    with pytest.raises(ValueError, match="positive"):
        SimilarityTask(0.0)
