"""LoRA on a linear layer for a batch whose samples belong to different experts.

y_i = x_i Wᵀ + b + s (x_i A_eᵀ) B_eᵀ with e the expert of sample i, for all experts at once: a
batch of mixed timesteps is guided, and N experts are trained, in one pass. Every launch (forward,
dx, dA, dB) serves all experts; it is the kernel of `lora_linear` over rows sorted by expert.

On a CPU the best torch formulation: the experts' A concatenated give one matmul down to E r
columns, a mask keeps those of each row's own expert, and one matmul with the concatenated B goes
up; E r is small beside the layer's width, and no row moves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, select, uses_op
from ppap_kernels.operators import autocast, differentiable

__all__ = [
    "grouped_lora_linear",
    "grouped_lora_linear_reference",
    "grouped_low_rank_matmul_op",
    "grouped_outer_op",
    "of_samples",
    "outer",
]


def grouped_lora_linear_reference(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The same in plain torch; also what runs on a CPU. See `grouped_lora_linear`."""
    experts, rank, _ = a.shape
    base = torch.nn.functional.linear(x, weight, bias)
    low = torch.nn.functional.linear(x, a.flatten(0, 1))
    own = index[:, None] == torch.arange(experts, device=index.device)
    mask = own.to(x.dtype).mul(scale).repeat_interleave(rank, 1)
    low = low * mask.view(len(x), *[1] * (x.ndim - 2), experts * rank)
    up = b.transpose(0, 1).flatten(1)
    return torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.t()).view(base.shape)


def grouped_lora_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Linear layer with one LoRA adapter per expert and one expert per sample.

    An expert without samples gets a gradient of zero. A gradient is computed only for those of
    x, weight, a, b and bias that require one.

    Args:
        x: (B, ..., in).
        weight: (out, in), shared by all experts.
        a: (E, r, in), the down-projections.
        b: (E, out, r), the up-projections.
        index: (B,) integer expert of each sample in any order, -1 for no adapter. A value out of
            range raises on a CPU and trips a device assertion on a GPU.
        bias: (out,).
        scale: s, the same for all experts.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        (B, ..., out) in the dtype of x, or in autocast's where autocast is on.

    Raises:
        ValueError: if shapes do not fit each other, or the backend cannot run here.
        TypeError: if dtypes differ outside autocast, or the index is not of integers.
    """
    x, weight, a, b, bias = autocast(x, weight, a, b, bias)
    _check(x, weight, a, b, index, bias)
    index = index.long()  # the unsigned have no -1
    valid = (index >= -1) & (index < len(a))
    torch._assert_async(valid.all(), f"index must lie in -1 ... {len(a) - 1}")
    if not uses_op(backend, x, "grouped_low_rank_matmul"):
        return grouped_lora_linear_reference(x, weight, a, b, index, bias, scale)
    rows = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
    p, q, r = weight.t(), a.transpose(1, 2), b.transpose(1, 2)
    y, _ = _apply(rows, p, q, r, bias, index, float(scale), backend == "triton")
    return y.reshape(*x.shape[:-1], len(weight))  # type: ignore[no-any-return]


@torch.library.custom_op("ppap_kernels::grouped_low_rank_matmul", mutates_args=())
def grouped_low_rank_matmul_op(
    x: Tensor,
    p: Tensor,
    q: Tensor,
    r: Tensor,
    bias: Tensor | None,
    index: Tensor,
    scale: float,
    force: bool,
) -> tuple[Tensor, Tensor]:
    """`low_rank_matmul` with q and r of each sample's expert; h is 0 where there is none.

    Args:
        x: (B, T, K).
        p: (K, N), shared.
        q: (E, K, r).
        r: (E, r, N).
        bias: (N,).
        index: (B,) expert of each sample, -1 for none.
        scale: factor of the low-rank product.
        force: take Triton even where the table prefers torch.

    Returns:
        y (B, T, N) and h (B, T, r).
    """
    (batch, tokens, k), n = x.shape, p.shape[1]
    shape = {"m": batch * tokens, "n": n, "k": k, "r": q.shape[2]}
    entry = select("grouped_low_rank_matmul", x, shape, force)
    if entry is None:
        h = torch.bmm(x, of_samples(q, index))
        base = x @ p if bias is None else x @ p + bias
        return torch.baddbmm(base, h, of_samples(r, index), alpha=scale), h
    from ppap_kernels import triton_matmul

    return triton_matmul.grouped_low_rank_matmul(x, p, q, r, bias, index, scale, entry.config)


@torch.library.custom_op("ppap_kernels::grouped_outer", mutates_args=())
def grouped_outer_op(
    u: Tensor, v: Tensor, index: Tensor, experts: int, scale: float, force: bool
) -> Tensor:
    """Sum, times scale, of u_rowᵀ v_row over each expert's rows; 0 for an empty expert.

    Args:
        u: (B, T, U).
        v: (B, T, V).
        index: (B,) expert of each sample, -1 for none.
        experts: number of experts E.
        scale: factor of the result.
        force: take Triton even where the table prefers torch.

    Returns:
        (E, U, V).
    """
    shape = {"m": u.shape[0] * u.shape[1], "u": u.shape[2], "v": v.shape[2]}
    entry = select("grouped_outer", u, shape, force)
    if entry is None:
        own = index[None] == torch.arange(experts, device=index.device)[:, None]
        return torch.einsum("eb,btu,btv->euv", own.to(u.dtype) * scale, u, v)
    from ppap_kernels import triton_matmul

    return triton_matmul.grouped_outer(u, v, index, experts, scale, entry.config)


@grouped_low_rank_matmul_op.register_fake
def _(
    x: Tensor,
    p: Tensor,
    q: Tensor,
    r: Tensor,
    bias: Tensor | None,
    index: Tensor,
    scale: float,
    force: bool,
) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = x.shape
    return x.new_empty(batch, tokens, p.shape[1]), x.new_empty(batch, tokens, q.shape[2])


@grouped_outer_op.register_fake
def _(u: Tensor, v: Tensor, index: Tensor, experts: int, scale: float, force: bool) -> Tensor:
    return u.new_empty(experts, u.shape[2], v.shape[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, p, q, r, _, index, scale, force = inputs
    _, needs_p, needs_q, needs_r, *_ = ctx.needs_input_grad
    saved_x = x if needs_p or needs_q else None
    ctx.save_for_backward(saved_x, p, q, r, index, output[1] if needs_r else None)
    ctx.scale, ctx.force = scale, force
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Any, ...]:
    x, p, q, r, index, h = ctx.saved_tensors
    needs_x, needs_p, needs_q, needs_r, needs_bias, *_ = ctx.needs_input_grad
    dx = dp = dq = dr = dbias = None
    if dy is not None:
        if needs_x or needs_q:
            transposed = (p.t(), r.transpose(1, 2), q.transpose(1, 2))
            dx, g = _apply(dy, *transposed, None, index, ctx.scale, ctx.force)
        if needs_q:
            dq = outer(x, g, index, len(q), ctx.scale, ctx.force)
        if needs_r:
            dr = outer(h, dy, index, len(q), ctx.scale, ctx.force)
        if needs_p:
            dp = x.flatten(0, 1).t() @ dy.flatten(0, 1)
        if needs_bias:
            dbias = dy.sum((0, 1))
    if dh is not None:
        if needs_x:
            dx_h = torch.bmm(dh, of_samples(q, index).transpose(1, 2))
            dx = dx_h if dx is None else dx + dx_h
        if needs_q:
            dq_h = outer(x, dh, index, len(q), 1.0, ctx.force)
            dq = dq_h if dq is None else dq + dq_h
    return (dx if needs_x else None), dp, dq, dr, dbias, None, None, None


def _outer_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, v, index, _, scale, _ = inputs
    ctx.save_for_backward(u, v, index)
    ctx.scale = scale


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    u, v, index = ctx.saved_tensors
    own = of_samples(grad, index) * ctx.scale
    return torch.bmm(v, own.transpose(1, 2)), torch.bmm(u, own), None, None, None, None


def of_samples(matrices: Tensor, index: Tensor) -> Tensor:
    """The matrix (E, K, N) of each sample's expert as (B, K, N), 0 where there is none."""
    own = (index >= 0).to(matrices.dtype)[:, None, None]
    return matrices[index.clamp(min=0)] * own


outer = differentiable(grouped_outer_op, _outer_setup_context, _outer_backward)
_apply = differentiable(grouped_low_rank_matmul_op, _setup_context, _backward)


def _check(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, index: Tensor, bias: Tensor | None
) -> None:
    if x.ndim < 2 or weight.ndim != 2 or a.ndim != 3 or b.ndim != 3:
        raise ValueError("x needs a batch dimension, weight is a matrix, a and b stacks of them")
    (out, inner), (experts, rank, _) = weight.shape, a.shape
    fits = x.shape[-1] == a.shape[2] == inner and b.shape == (experts, out, rank)
    if not fits or (bias is not None and bias.shape != (out,)) or index.shape != x.shape[:1]:
        raise ValueError(
            f"weight (out, in) = {(out, inner)} needs x (B, ..., {inner}), a (E, r, {inner}), "
            f"b (E, {out}, r), index (B,) and bias ({out},); got x {tuple(x.shape)}, "
            f"a {tuple(a.shape)}, b {tuple(b.shape)}, index {tuple(index.shape)}"
        )
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"index must be of integers, got {index.dtype}")
    others = [weight, a, b] + ([] if bias is None else [bias])
    if any(t.dtype != x.dtype for t in others):
        raise TypeError(f"x is {x.dtype}; weight, a, b and bias must be too (or use autocast)")
