"""Classification: loss, likelihood and score against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from ppap.tasks.classes import ClassTask


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
