"""The losses, likelihoods and scores of tasks against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask, align_depth
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask


def test_transfer_loss_is_the_divergence_from_the_sharpened_teacher() -> None:
    teacher, student = torch.randn(6, 4), torch.randn(6, 4)
    sharp = (teacher / 0.25).softmax(1)
    expected = (sharp * (sharp.log() - student.softmax(1).log())).sum(1).mean()
    torch.testing.assert_close(ClassTask().transfer_loss(student, teacher), expected)


def test_transfer_loss_vanishes_at_the_sharpened_teacher() -> None:
    teacher = torch.randn(6, 4)
    assert ClassTask(0.5).transfer_loss(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = torch.randn(2, 3, requires_grad=True)
    student = torch.randn(2, 3, requires_grad=True)
    ClassTask().transfer_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_likelihood_and_score_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 0.0]])
    targets = torch.tensor([1, 1])
    likelihood = ClassTask().log_likelihood(logits, targets)
    assert likelihood[0].item() == pytest.approx(math.log(0.75))
    assert ClassTask().score(logits, targets).tolist() == [1.0, 0.0]
    assert ClassTask().supervised_loss(logits, targets).item() == pytest.approx(
        -likelihood.mean().item()
    )


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        ClassTask(0.0)


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


def test_known_intersection_over_union() -> None:
    # Label 0: 3 of 5 pixels in common; label 1: 1 of 3; label 2 only predicted, 0 of 1.
    wanted = torch.tensor([[[0, 0, 0, 0], [1, 1, -1, -1]]])
    found = torch.tensor([[[0, 0, 0, 2], [0, 1, 3, 3]]])
    logits = torch.nn.functional.one_hot(found, 4).movedim(-1, 1).double()
    task = SegmentationTask()
    assert task.score(logits, wanted).item() == pytest.approx((3 / 5 + 1 / 2 + 0) / 3)
    assert task.errors(logits, wanted).item() == pytest.approx(2 / 6)
    assert torch.equal(task.target(logits), found)
    assert task.score(logits, found).item() == 1


def test_segmentation_is_classification_of_every_pixel() -> None:
    student, teacher = maps(2, 5, 3, 4), maps(2, 5, 3, 4, seed=1)
    labels = teacher.argmax(1)
    flat = [part.movedim(1, -1).reshape(-1, 5) for part in (student, teacher)]
    dense, single = SegmentationTask(0.5), ClassTask(0.5)
    torch.testing.assert_close(dense.transfer_loss(student, teacher), single.transfer_loss(*flat))
    expected = single.log_likelihood(flat[0], labels.reshape(-1)).view(2, -1).mean(1)
    torch.testing.assert_close(dense.log_likelihood(student, labels), expected)
    torch.testing.assert_close(dense.supervised_loss(student, labels), -expected.mean())


def test_unlabelled_pixels_do_not_count() -> None:
    logits, labels = maps(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, :, 2:] = -1
    cut = SegmentationTask().log_likelihood(logits[..., :2], labels[..., :2])
    torch.testing.assert_close(SegmentationTask().log_likelihood(logits, labels), cut)
    nothing = torch.full_like(labels, -1)
    assert SegmentationTask().log_likelihood(logits, nothing).item() == 0


@pytest.mark.parametrize("task", [DepthTask(), DepthTask(aligned=False), SegmentationTask()])
def test_gradients_are_those_of_finite_differences(task: Task) -> None:
    prediction = maps(2, 4, 5, 5) if isinstance(task, SegmentationTask) else maps(2, 1, 5, 5)
    targets = task.target(maps(*prediction.shape, seed=1)).clone()
    targets[0, 0, :2] = -1 if isinstance(task, SegmentationTask) else torch.nan
    assert torch.autograd.gradcheck(
        lambda found: task.log_likelihood(found, targets), prediction.requires_grad_()
    )


@pytest.mark.parametrize("task", [DepthTask(), DepthTask(aligned=False), SegmentationTask()])
def test_no_gradient_reaches_a_dense_teacher(task: Task) -> None:
    student, teacher = (maps(2, 1, 4, 4, seed=seed).requires_grad_() for seed in (0, 1))
    task.transfer_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="resize the targets"):
        DepthTask().log_likelihood(maps(2, 4, 4), maps(2, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        DepthTask().log_likelihood(maps(2, 3, 4, 4), maps(2, 4, 4))
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="resize the targets"):
        SegmentationTask().log_likelihood(maps(2, 3, 4, 4), labels)
    with pytest.raises(ValueError, match="label 3 is beyond the 3 classes"):
        SegmentationTask().log_likelihood(maps(2, 3, 8, 8), labels + 3)
    with pytest.raises(ValueError, match="above 1"):
        DepthTask(ratio=1.0)
    with pytest.raises(ValueError, match="positive"):
        SegmentationTask(0.0)


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


def test_segmentation_can_be_traced() -> None:
    """As the fast path does, where values of targets are not known."""
    task, logits = SegmentationTask(), maps(2, 3, 4, 4)
    labels = task.target(maps(2, 3, 4, 4, seed=1))

    def likelihood(found: Tensor, wanted: Tensor) -> Tensor:  # make_fx miscounts a method's
        return task.log_likelihood(found, wanted)

    graph = make_fx(likelihood)(logits, labels)
    torch.testing.assert_close(graph(logits, 2 - labels), task.log_likelihood(logits, 2 - labels))
