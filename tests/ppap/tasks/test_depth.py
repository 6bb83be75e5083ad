"""Depth: alignment, likelihood and scores against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppap.tasks.depth import DepthTask, align_depth


def maps(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


def test_alignment_recovers_scale_and_shift_exactly() -> None:
    targets = maps(3, 6, 7)
    scale = torch.tensor([0.2, -3.0, 40.0], dtype=torch.float64)[:, None, None]
    found = (targets - 1.7) / scale
    torch.testing.assert_close(align_depth(found, targets), targets)
    assert DepthTask().errors(found[:, None], targets).max() < 1e-12
    assert DepthTask().score(found, targets).tolist() == [1.0] * 3


def test_alignment_is_least_squares_and_looks_past_unknown_pixels() -> None:
    found, targets = maps(1, 5, 5), maps(1, 5, 5, seed=1)
    targets[0, 2, 1:4] = torch.nan
    known = ~targets[0].isnan()
    design = torch.stack([found[0][known], torch.ones(22, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, targets[0][known]).solution
    expected = found[0] * solution[0] + solution[1]
    torch.testing.assert_close(align_depth(found, targets)[0], expected)
    rest = (design @ solution - targets[0][known]).square().mean().sqrt()
    assert DepthTask().errors(found, targets).item() == pytest.approx(rest.item())


def test_a_constant_map_aligns_with_the_mean() -> None:
    targets = maps(1, 4, 4)
    aligned = align_depth(torch.full((1, 4, 4), 3.0, dtype=torch.float64), targets)
    torch.testing.assert_close(aligned, targets.mean().expand(1, 4, 4))


def test_aligned_likelihood_is_that_of_the_correlation() -> None:
    found, targets = maps(2, 8, 8), maps(2, 8, 8, seed=1)
    r = [torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1] for a, b in
         zip(found, targets, strict=True)]  # fmt: skip
    likelihood = DepthTask().log_likelihood(found, targets)
    torch.testing.assert_close(likelihood, 2 * torch.stack(r) - 2, atol=1e-9, rtol=0)
    moved = DepthTask().log_likelihood(3 * found + 1, 0.2 * targets - 5)
    torch.testing.assert_close(moved, likelihood)
    assert DepthTask().log_likelihood(-targets, targets).tolist() == pytest.approx([-4, -4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_in_other_units_has_the_same_likelihood_and_a_gradient_in_its_own(
    dtype: torch.dtype,
) -> None:
    found, targets = maps(2, 8, 8).to(dtype), maps(2, 8, 8, seed=1).to(dtype)
    results = []
    for scale in (1.0, 1e-3, 1e-5, 1e-7, 1e4):
        ours = (found * scale).requires_grad_()
        likelihood = DepthTask().log_likelihood(ours, targets / scale)
        (gradient,) = torch.autograd.grad(likelihood.sum(), ours)
        results.append((likelihood.detach(), gradient * scale))
    for likelihood, gradient in results[1:]:
        torch.testing.assert_close(likelihood, results[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.1, 1000.0])
def test_a_constant_map_says_nothing_and_has_a_finite_gradient(value: float) -> None:
    targets = maps(1, 8, 8).float()
    targets[0, 0] = torch.nan
    for flat, other in ((True, False), (False, True)):
        constant = torch.full((1, 8, 8), value)
        ours = (constant if flat else maps(1, 8, 8, seed=1).float()).requires_grad_()
        likelihood = DepthTask().log_likelihood(ours, constant if other else targets)
        (gradient,) = torch.autograd.grad(likelihood.sum(), ours)
        assert likelihood.item() == pytest.approx(-1, abs=0.05)
        assert gradient.isfinite().all()


def test_metric_depth_by_hand() -> None:
    task = DepthTask(aligned=False)
    targets = torch.tensor([[[1.0, 2.0], [4.0, torch.nan]]])
    found = torch.tensor([[[1.2, 2.0], [2.0, 9.0]]])
    assert task.log_likelihood(found, targets).item() == pytest.approx(-(0.04 + 4) / 3)
    assert task.supervised_loss(found, targets).item() == pytest.approx((0.04 + 4) / 3)
    assert task.errors(found, targets).item() == pytest.approx(math.sqrt(4.04 / 3))
    assert task.score(found, targets).item() == pytest.approx(2 / 3)
    assert task.score(-found, targets).item() == 0
    assert task.transfer_loss(found, found + 2).item() == pytest.approx(4)
    torch.testing.assert_close(task.target(found[:, None]), found)
