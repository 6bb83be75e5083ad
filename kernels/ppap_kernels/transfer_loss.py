"""Knowledge transfer against a sharpened teacher: the loss and its gradient in one pass.

KL(softmax(teacher / tau) || softmax(student)), the mean over the batch; tau below 1 sharpens
the teacher. With p the teacher's and q the student's probabilities the gradient in the student's
logits is (q - p) / B, so the pass that computes the loss computes it too, and neither p nor q is
stored. The teacher is a constant: no gradient flows into it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, select, uses_op
from ppap_kernels.operators import differentiable

__all__ = ["transfer_loss", "transfer_loss_op", "transfer_loss_reference"]

LARGEST_ROW = 8192  # both rows stay in registers; beyond this they spill


def transfer_loss_reference(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """The same in plain torch; also what runs on a CPU. See `transfer_loss`."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    target = (teacher.detach().to(dtype) / tau).softmax(1)
    logits = student.to(dtype).log_softmax(1).masked_fill(target == 0, 0)  # for 0 times -inf is NaN
    return torch.nn.functional.kl_div(logits, target, reduction="batchmean")


def transfer_loss(
    student: Tensor, teacher: Tensor, tau: float = 1.0, *, backend: Backend = "auto"
) -> Tensor:
    """Mean over the batch of KL(softmax(teacher / tau) || softmax(student)), in nats.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits, a constant.
        tau: temperature of the teacher, above 0.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        () float32, or float64 for a float64 student.

    Raises:
        ValueError: if the shapes are not equal matrices with at least one element, tau is not
            above 0, there are more classes than one tile holds and Triton is forced, or the
            backend cannot run here.
    """
    if student.ndim != 2 or student.shape != teacher.shape or not student.numel():
        raise ValueError(
            "student and teacher must be (B, K) logits of one shape, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"tau must be above 0, got {tau}")
    fits = student.shape[1] <= LARGEST_ROW
    if backend == "triton" and not fits:
        raise ValueError(f"the Triton kernel takes {LARGEST_ROW} classes, got {student.shape[1]}")
    if not (uses_op(backend, student, "transfer_loss") and fits):
        return transfer_loss_reference(student, teacher, tau)
    losses, _ = _apply(student, teacher.detach(), float(tau), backend == "triton")
    return losses.mean()  # type: ignore[no-any-return]


@torch.library.custom_op("ppap_kernels::transfer_loss", mutates_args=())
def transfer_loss_op(
    student: Tensor, teacher: Tensor, tau: float, force: bool
) -> tuple[Tensor, Tensor]:
    """Per-row losses and the gradient of their mean.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        tau: temperature of the teacher.
        force: take Triton even where the table prefers torch.

    Returns:
        (B,) float32 (float64 for float64) and (B, K) like the student.
    """
    shape = {"rows": student.shape[0], "classes": student.shape[1]}
    entry = select("transfer_loss", student, shape, force)
    if entry is None:
        dtype = torch.promote_types(student.dtype, torch.float32)
        log_p = (teacher.to(dtype) / tau).log_softmax(1)
        log_q = student.to(dtype).log_softmax(1)
        p = log_p.exp()
        losses = torch.where(p == 0, 0, p * (log_p - log_q)).sum(1)
        return losses, ((log_q.exp() - p) / len(student)).to(student.dtype)
    from ppap_kernels import triton_elementwise

    return triton_elementwise.transfer_loss(student, teacher, tau, entry.config)


@transfer_loss_op.register_fake
def _(student: Tensor, teacher: Tensor, tau: float, force: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.new_empty(len(student), dtype=dtype), student.new_empty(student.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dlosses: Tensor | None, dgradient: Tensor | None) -> tuple[Any, ...]:
    student, gradient = ctx.saved_tensors
    dstudent = None
    if dlosses is not None:
        # The stored gradient is that of the mean, hence the factor B for a row's own loss.
        dstudent = (gradient * (dlosses * len(student))[:, None]).to(student.dtype)
    if dgradient is not None:
        q = student.to(torch.promote_types(student.dtype, torch.float32)).softmax(1)
        centred = dgradient - (q * dgradient).sum(1, keepdim=True)
        second = (q * centred / len(student)).to(student.dtype)
        dstudent = second if dstudent is None else dstudent + second
    return dstudent, None, None, None


_apply = differentiable(transfer_loss_op, _setup_context, _backward)
