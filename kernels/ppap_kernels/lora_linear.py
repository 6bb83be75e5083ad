"""LoRA on a linear layer as one operation: y = x Wᵀ + b + s (x Aᵀ) Bᵀ.

LoRA: Hu et al., arXiv 2106.09685, section 4.1. The fused operator is self-dual. Written as
y = x P + s (x Q) R with P = Wᵀ, Q = Aᵀ, R = Bᵀ, its gradient in x is the same form with
P, Q, R replaced by Pᵀ, Rᵀ, Qᵀ: dx = dy W + s (dy B) A. One kernel therefore runs both, and the
(M, r) products it leaves, h = x Aᵀ and g = dy B, are all that the adapter's own gradients need:
dA = s gᵀ x and dB = s dyᵀ h. Those two stay torch matmuls: they are tall-and-skinny reductions
over the batch, for which the vendor's split-K kernels are the best formulation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, select, uses_op
from ppap_kernels.operators import autocast, differentiable

__all__ = ["lora_linear", "lora_linear_reference", "low_rank_matmul_op"]


def lora_linear_reference(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """The same in plain torch; also what runs on a CPU. See `lora_linear`."""
    base = torch.nn.functional.linear(x, weight, bias)
    low = torch.nn.functional.linear(x, a)
    rows = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), b.t(), alpha=scale)
    return rows.view(base.shape)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Linear layer with a LoRA adapter.

    A gradient is computed for those of x, weight, a, b and bias that require one and for no
    other: a frozen weight costs nothing.

    Args:
        x: (..., in).
        weight: (out, in).
        a: (r, in), the down-projection.
        b: (out, r), the up-projection.
        bias: (out,).
        scale: s, alpha / r by LoRA's convention.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        (..., out) in the dtype of x, or in autocast's where autocast is on.

    Raises:
        ValueError: if shapes do not fit each other, or the backend cannot run here.
        TypeError: if dtypes differ outside autocast.
    """
    x, weight, a, b, bias = autocast(x, weight, a, b, bias)
    _check(x, weight, a, b, bias)
    if x.ndim == 1:
        return lora_linear(x[None], weight, a, b, bias, scale, backend=backend)[0]
    if not uses_op(backend, x, "low_rank_matmul"):
        return lora_linear_reference(x, weight, a, b, bias, scale)
    rows = x.reshape(-1, x.shape[-1])
    y, _ = _apply(rows, weight.t(), a.t(), b.t(), bias, float(scale), backend == "triton")
    return y.reshape(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]


@torch.library.custom_op("ppap_kernels::low_rank_matmul", mutates_args=())
def low_rank_matmul_op(
    x: Tensor,
    p: Tensor,
    q: Tensor,
    r: Tensor,
    bias: Tensor | None,
    scale: float,
    force: bool,
) -> tuple[Tensor, Tensor]:
    """Give y = x p + scale (x q) r + bias, and h = x q; any strides.

    Args:
        x: (M, K).
        p: (K, N).
        q: (K, r).
        r: (r, N).
        bias: (N,).
        scale: factor of the low-rank product.
        force: take Triton even where the table prefers torch.

    Returns:
        y (M, N) and h (M, r).
    """
    shape = {"m": x.shape[0], "n": p.shape[1], "k": x.shape[1], "r": q.shape[1]}
    entry = select("low_rank_matmul", x, shape, force)
    if entry is None:
        h = x @ q
        base = x @ p if bias is None else torch.addmm(bias, x, p)
        return base.addmm_(h, r, alpha=scale), h
    from ppap_kernels import triton_matmul

    return triton_matmul.low_rank_matmul(x, p, q, r, bias, scale, entry.config)


@low_rank_matmul_op.register_fake
def _(
    x: Tensor, p: Tensor, q: Tensor, r: Tensor, bias: Tensor | None, scale: float, force: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], p.shape[1]), x.new_empty(x.shape[0], q.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, p, q, r, _, scale, force = inputs
    _, needs_p, needs_q, needs_r, *_ = ctx.needs_input_grad
    saved_x = x if needs_p or needs_q else None
    ctx.save_for_backward(saved_x, p, q, r, output[1] if needs_r else None)
    ctx.scale, ctx.force = scale, force
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Any, ...]:
    x, p, q, r, h = ctx.saved_tensors
    needs_x, needs_p, needs_q, needs_r, needs_bias, *_ = ctx.needs_input_grad
    dx = dp = dq = dr = dbias = None
    if dy is not None:
        if needs_x:
            dx, g = _apply(dy, p.t(), r.t(), q.t(), None, ctx.scale, ctx.force)
        elif needs_q:
            g = dy @ r.t()
        if needs_p:
            dp = x.t() @ dy
        if needs_q:
            dq = x.t() @ g * ctx.scale
        if needs_r:
            dr = h.t() @ dy * ctx.scale
        if needs_bias:
            dbias = dy.sum(0)
    if dh is not None:
        if needs_x:
            dx = dh @ q.t() if dx is None else torch.addmm(dx, dh, q.t())
        if needs_q:
            dq = x.t() @ dh if dq is None else torch.addmm(dq, x.t(), dh)
    return dx, dp, dq, dr, dbias, None, None


_apply = differentiable(low_rank_matmul_op, _setup_context, _backward)


def _check(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2 or a.ndim != 2 or b.ndim != 2:
        raise ValueError("weight, a and b must be matrices")
    (out, inner), rank = weight.shape, a.shape[0]
    fits = x.shape[-1:] == (inner,) and a.shape[1] == inner and b.shape == (out, rank)
    if not fits or (bias is not None and bias.shape != (out,)):
        raise ValueError(
            f"weight (out, in) = {(out, inner)} needs x (..., {inner}), a (r, {inner}), "
            f"b ({out}, r) and bias ({out},); got x {tuple(x.shape)}, a {tuple(a.shape)}, "
            f"b {tuple(b.shape)}" + ("" if bias is None else f", bias {tuple(bias.shape)}")
        )
    others = [weight, a, b] + ([] if bias is None else [bias])
    if any(t.dtype != x.dtype for t in others):
        raise TypeError(f"x is {x.dtype}; weight, a, b and bias must be too (or use autocast)")
