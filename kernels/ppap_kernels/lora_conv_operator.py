"""The GPU operator of a convolution with LoRA adapters, and its derivatives.

One kernel computes both branches as one implicit matrix product over channels-last images, since
the branch is bound by memory and not by arithmetic: its r / out share of the operations (6 % at
rank 16 on 256 channels) costs less than the three passes over activations (x in, y in and out) of
a separate kernel after the vendor's convolution, where x and y are two in all. Where the vendor's
convolution is the faster nevertheless, the table says so. The gradient in x is
conv(dy, W) + conv(dh, A), transposed, one kernel again; dh = s (dy B) is a matmul down to r
columns, and with it the adapter's own gradients are convolutions and matmuls of r columns, which
stay the vendor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from ppap_kernels.conv_shapes import Geometry, dense, images_of, output_size, pixels_of
from ppap_kernels.dispatch import select
from ppap_kernels.grouped_lora_linear import of_samples, outer
from ppap_kernels.operators import differentiable

__all__ = ["low_rank_conv", "low_rank_conv_dx_op", "low_rank_conv_op"]


@torch.library.custom_op("ppap_kernels::low_rank_conv", mutates_args=())
def low_rank_conv_op(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    force: bool,
) -> tuple[Tensor, Tensor]:
    """Give y = conv(x, weight) + scale (h b) + bias, and h = conv(x, a); any strides.

    Args:
        x: (B, in, H, W).
        weight: (out, in, k, k).
        a: (E, r, in, k, k).
        b: (E, out, r).
        bias: (out,).
        index: (B,) expert of each sample, -1 for none; None where E = 1 and all samples have it.
        stride: of height and width.
        padding: of height and width.
        dilation: of height and width.
        scale: factor of the low-rank path.
        force: take Triton even where the table prefers torch.

    Returns:
        y (B, out, H', W') and h (B, r, H', W'), channels-last.
    """
    geometry = (stride, padding, dilation)
    size = output_size(x, weight, geometry)
    shape = {"m": len(x) * size[0] * size[1], "n": len(weight), "k": x.shape[1], "r": a.shape[1]}
    entry = select(_kernel(index), x, shape, force)
    if entry is None:
        h = _own_conv(x, a, index, geometry)
        own = b[0] if index is None else of_samples(b, index)
        up = images_of(pixels_of(h) @ own.transpose(-1, -2), size)
        y = torch.add(F.conv2d(x, weight, bias, *geometry), up, alpha=scale)
        return dense(y), dense(h)
    from ppap_kernels import triton_conv

    return triton_conv.low_rank_conv(
        x, weight, a, b, bias, index, size, geometry, scale, entry.config
    )


@torch.library.custom_op("ppap_kernels::low_rank_conv_dx", mutates_args=())
def low_rank_conv_dx_op(
    dy: Tensor,
    dh: Tensor,
    weight: Tensor,
    a: Tensor,
    index: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    force: bool,
) -> Tensor:
    """The gradient in x of conv(x, weight) and conv(x, a), given theirs; arguments as above.

    Args:
        dy: (B, out, H', W').
        dh: (B, r, H', W').
        weight: (out, in, k, k).
        a: (E, r, in, k, k).
        index: (B,) or None.
        size: height and width of x.
        stride: of height and width.
        padding: of height and width.
        dilation: of height and width.
        force: take Triton even where the table prefers torch.

    Returns:
        (B, in, H, W), channels-last.
    """
    geometry = (stride, padding, dilation)
    n = weight.shape[1]
    shape = {"m": len(dy) * size[0] * size[1], "n": n, "k": len(weight), "r": a.shape[1]}
    entry = select(_kernel(index), dy, shape, force)
    if entry is None:
        inputs = (len(dy), n, *size)
        spread = dh if index is None else _spread(dh, index, len(a))
        pairs = ((weight, dy), (a.flatten(0, 1), spread))
        dx, dx_low = (conv2d_input(inputs, w, grad, *geometry) for w, grad in pairs)  # type: ignore[no-untyped-call]
        return dense(dx + dx_low)
    from ppap_kernels import triton_conv

    return triton_conv.low_rank_conv_dx(dy, dh, weight, a, index, size, geometry, entry.config)


@low_rank_conv_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    force: bool,
) -> tuple[Tensor, Tensor]:
    size = output_size(x, weight, (stride, padding, dilation))
    channels = (len(weight), a.shape[1])
    y, h = (x.new_empty(len(x), *size, c).permute(0, 3, 1, 2) for c in channels)
    return y, h


@low_rank_conv_dx_op.register_fake
def _(
    dy: Tensor,
    dh: Tensor,
    weight: Tensor,
    a: Tensor,
    index: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    force: bool,
) -> Tensor:
    return dy.new_empty(len(dy), *size, weight.shape[1]).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, a, b, _, index, *geometry, scale, force = inputs
    _, needs_weight, needs_a, needs_b, *_ = ctx.needs_input_grad
    ctx.save_for_backward(
        x if needs_weight or needs_a else None, weight, a, b, index, output[1] if needs_b else None
    )
    ctx.size, ctx.geometry, ctx.scale, ctx.force = x.shape[2:], geometry, scale, force
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Any, ...]:
    x, weight, a, b, index, h = ctx.saved_tensors
    needs_x, needs_weight, needs_a, needs_b, needs_bias, *_ = ctx.needs_input_grad
    dx = dweight = da = db = dbias = None
    if dy is None:
        if dh is None:
            return (None,) * 11
        dy = dh.new_zeros(len(dh), len(weight), *dh.shape[2:])
    if needs_x or needs_a:
        own = b[0] if index is None else of_samples(b, index)
        through = images_of(pixels_of(dy) @ own, dy.shape[2:]) * ctx.scale
        dh = through if dh is None else dh + through
    if needs_x:
        dx = _low_rank_conv_dx(dy, dh, weight, a, index, ctx.size, *ctx.geometry, ctx.force)
    if needs_weight:
        dweight = _conv_weight(x, dy, weight.shape, ctx.geometry)
    if needs_a:
        assert dh is not None
        da = _own_conv_weight(x, dh, a, index, ctx.geometry)
    if needs_b and index is None:
        db = (pixels_of(dy).flatten(0, 1).t() @ pixels_of(h).flatten(0, 1) * ctx.scale)[None]
    elif needs_b:
        db = outer(pixels_of(dy), pixels_of(h), index, len(b), ctx.scale, ctx.force)
    if needs_bias:
        dbias = dy.sum((0, 2, 3))
    return dx, dweight, da, db, dbias, *[None] * 6


def _dx_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, dh, weight, a, index, _, *geometry, _ = inputs
    ctx.save_for_backward(dy, dh, weight, a, index)
    ctx.geometry = geometry


def _dx_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dy, dh, weight, a, index = ctx.saved_tensors
    needs_dy, needs_dh, needs_weight, needs_a, *_ = ctx.needs_input_grad
    return (
        F.conv2d(grad, weight, None, *ctx.geometry) if needs_dy else None,
        _own_conv(grad, a, index, ctx.geometry) if needs_dh else None,
        _conv_weight(grad, dy, weight.shape, ctx.geometry) if needs_weight else None,
        _own_conv_weight(grad, dh, a, index, ctx.geometry) if needs_a else None,
        *[None] * 6,
    )


_low_rank_conv_dx = differentiable(low_rank_conv_dx_op, _dx_setup_context, _dx_backward)
low_rank_conv = differentiable(low_rank_conv_op, _setup_context, _backward)
"""Takes the operator's arguments; differentiable any number of times."""


def _own_conv(x: Tensor, a: Tensor, index: Tensor | None, geometry: Geometry) -> Tensor:
    """conv(x, a) of each sample's expert (B, r, H', W'), 0 where there is none."""
    low = F.conv2d(x, a.flatten(0, 1), None, *geometry)
    if index is None:
        return low
    own = _own(index, len(a), x.dtype)[:, :, None, None, None]
    return (low.view(len(x), *a.shape[:2], *low.shape[2:]) * own).sum(1)


def _own_conv_weight(
    x: Tensor, dh: Tensor, a: Tensor, index: Tensor | None, geometry: Geometry
) -> Tensor:
    """The gradient in a (E, r, in, k, k) of `_own_conv`."""
    spread = dh if index is None else _spread(dh, index, len(a))
    return _conv_weight(x, spread, a.flatten(0, 1).shape, geometry).view(a.shape)


def _conv_weight(x: Tensor, dy: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    gradient = conv2d_weight(x, shape, dy, *geometry)  # type: ignore[no-untyped-call]
    assert isinstance(gradient, Tensor)
    return gradient


def _spread(dh: Tensor, index: Tensor, experts: int) -> Tensor:
    """(B, r, H, W) as (B, E r, H, W), 0 but for each sample's expert."""
    own = _own(index, experts, dh.dtype)[:, :, None, None, None]
    return (dh[:, None] * own).flatten(1, 2)


def _own(index: Tensor, experts: int, dtype: torch.dtype) -> Tensor:
    return (index[:, None] == torch.arange(experts, device=index.device)).to(dtype)


def _kernel(index: Tensor | None) -> str:
    return "low_rank_conv" if index is None else "grouped_low_rank_conv"
