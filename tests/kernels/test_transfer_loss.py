"""The sharpened-teacher KL, its closed-form values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ppap_kernels import transfer_loss
from ppap_kernels.transfer_loss import transfer_loss_op
from torch import Tensor

Function = Callable[..., Tensor]


def logits(shape: tuple[int, ...] = (3, 5), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


def through_op(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """The operator's own torch formulation and its registered derivative, on a CPU."""
    from ppap_kernels.transfer_loss import _apply

    return _apply(student, teacher, tau, False)[0].mean()


both = pytest.mark.parametrize("function", [transfer_loss, through_op])


@both
def test_two_classes_by_hand(function: Function) -> None:
    # Teacher odds 3:1 squared by tau = 1/2 are 9:1; the student is undecided.
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert function(student, teacher, 0.5).item() == pytest.approx(expected, abs=1e-12)


@both
def test_it_is_zero_for_equals_and_does_not_see_a_shift(function: Function) -> None:
    student, teacher = logits()
    shifted = student + torch.tensor([[5.0], [-100.0], [1e3]])
    assert function(student, student).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(function(shifted, teacher), function(student, teacher))


@both
def test_the_gradient_is_the_difference_of_probabilities(function: Function) -> None:
    student, teacher = logits()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(function(student, teacher, 0.5), student)
    expected = (student.softmax(1) - (teacher / 0.5).softmax(1)) / 3
    torch.testing.assert_close(gradient, expected.detach())


@both
def test_gradients(function: Function) -> None:
    student, teacher = logits()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: function(s, teacher, 0.7), student)
    assert torch.autograd.gradgradcheck(lambda s: function(s, teacher, 0.7), student)


@both
def test_no_gradient_flows_into_the_teacher(function: Function) -> None:
    student, teacher = (t.requires_grad_() for t in logits())
    function(student, teacher).backward()
    assert teacher.grad is None


@both
def test_a_certain_teacher_is_cross_entropy(function: Function) -> None:
    student, _ = logits()
    labels = torch.tensor([1, 4, 0])
    teacher = torch.nn.functional.one_hot(labels, 5).double() * 2000
    expected = torch.nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(function(student, teacher), expected)


@both
def test_a_class_that_both_leave_out_adds_nothing(function: Function) -> None:
    student, teacher = logits()
    expected = function(student[:, :3], teacher[:, :3], 0.5)
    student[:, 3:] = teacher[:, 3:] = -math.inf
    student.requires_grad_()
    loss = function(student, teacher, 0.5)
    torch.testing.assert_close(loss.detach(), expected)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@both
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("whose", [0, 1])
def test_what_is_no_distribution_has_no_loss(function: Function, whose: int, wrong: float) -> None:
    """A row of NaN must not count as a divergence of zero, while its gradient is NaN."""
    both_logits = logits()
    both_logits[whose][1, 2] = wrong
    assert function(*both_logits).isnan()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it itself
def test_opcheck() -> None:
    student, teacher = logits(dtype=torch.float32)
    torch.library.opcheck(transfer_loss_op, (student.requires_grad_(), teacher, 0.5, False))


@both
def test_compiles_whole_and_takes_functional_gradients(function: Function) -> None:
    student, teacher = logits()
    expected = torch.func.grad(function)(student, teacher, 0.5)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    student.requires_grad_()
    got = torch.autograd.grad(compiled(student, teacher, 0.5), student)[0]
    torch.testing.assert_close(got, expected)


def test_errors_say_what_was_expected() -> None:
    student, teacher = logits()
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        transfer_loss(student, teacher[:, :-1])
    with pytest.raises(ValueError, match="above 0"):
        transfer_loss(student, teacher, 0.0)
