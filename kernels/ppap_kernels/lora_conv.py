"""LoRA on a convolution in peft's form: y = conv(x, W) + b + s conv1x1(conv(x, A), B).

A is k x k down to r channels, B is 1 x 1 up. The GPU kernel computes both branches as one
implicit matrix product over channels-last images, since the branch is bound by memory and not by
arithmetic: its r / out share of the operations (6 % at rank 16 on 256 channels) costs less than
the three passes over activations (x in, y in and out) of a separate kernel after the vendor's
convolution, where x and y are two in all. Where the vendor's convolution is the faster
nevertheless, the table says so. The gradient in x is conv(dy, W) + conv(dh, A), transposed, one
kernel again; dh = s (dy B) is a matmul down to r columns, and with it the adapter's own gradients
are convolutions and matmuls of r columns, which stay the vendor's.

An adapter that does not change is cheaper still: `merge_lora` writes W + s B A once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from ppap_kernels.dispatch import Backend, select, uses_op
from ppap_kernels.grouped_lora_linear import grouped_lora_linear, of_samples, outer
from ppap_kernels.lora_linear import lora_linear
from ppap_kernels.operators import autocast, differentiable

__all__ = [
    "grouped_lora_conv",
    "grouped_lora_conv_reference",
    "lora_conv",
    "lora_conv_reference",
    "low_rank_conv_dx_op",
    "low_rank_conv_op",
]

Pair = int | Sequence[int]
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]
# Up to this many in-channels a CPU's time for a convolution goes into memory, not arithmetic.
NARROW = 64


def lora_conv_reference(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """The same in plain torch. See `lora_conv`."""
    geometry = (_pair(stride), _pair(padding), _pair(dilation))
    base = F.conv2d(x, weight, bias, *geometry, groups)
    up = scale * b.flatten(1)[..., None, None]
    return base + F.conv2d(F.conv2d(x, a, None, *geometry), up, groups=groups)


def grouped_lora_conv_reference(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:
    """The same in plain torch: one convolution down to E r channels, a mask, one up."""
    geometry = (_pair(stride), _pair(padding), _pair(dilation))
    low = F.conv2d(x, a.flatten(0, 1), None, *geometry)
    own = index[:, None] == torch.arange(len(a), device=index.device)
    mask = own.to(x.dtype).mul(scale).repeat_interleave(a.shape[1], 1)
    up = b.transpose(0, 1).flatten(1)[..., None, None]
    return F.conv2d(x, weight, bias, *geometry) + F.conv2d(low * mask[..., None, None], up)


def lora_conv(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair = 1,
    groups: int = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Two-dimensional convolution with a LoRA adapter of peft's form.

    A gradient is computed only for those of x, weight, a, b and bias that require one.

    Args:
        x: (B, in, H, W); channels-last is what a GPU reads without a copy.
        weight: (out, in / groups, k, k), square or not.
        a: (r, in, k, k), the down-projection; it takes stride, padding and dilation too. (peft's
            layer does not dilate it.)
        b: (out, r / groups) or (out, r / groups, 1, 1), the up-projection.
        bias: (out,).
        scale: s, alpha / r by LoRA's convention.
        stride: of height and width, one number for both.
        padding: of zeros, likewise.
        dilation: likewise.
        groups: of the base convolution and, as peft has it, of the up-projection; the
            down-projection is dense. Other than 1 runs in torch.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        (B, out, H', W') in the dtype of x, or in autocast's where autocast is on.

    Raises:
        ValueError: if shapes do not fit each other, or the backend cannot run here.
        TypeError: if dtypes differ outside autocast.
    """
    x, weight, a, b, bias = autocast(x, weight, a, b, bias)
    b = b.flatten(1) if b.ndim == 4 else b
    geometry = (_pair(stride), _pair(padding), _pair(dilation))
    _check(x, weight, a[None], b[None], bias, groups)
    fused = uses_op(backend, x)
    if fused and groups == 1:
        if _pointwise(weight, geometry):
            matrices = (weight.flatten(1), a.flatten(1), b)
            y = lora_linear(_rows(x, geometry), *matrices, bias, scale, backend=backend)
            return y.permute(0, 3, 1, 2)
        stacks = (a[None], b[None], bias, None)
        y, _ = _apply(x, weight, *stacks, *geometry, float(scale), backend == "triton")
        return y  # type: ignore[no-any-return]
    if backend == "triton":
        raise ValueError(f"the Triton kernel takes groups=1, got {groups}; use backend='torch'")
    if groups == 1 and _merging_pays(x, weight, a, b):
        merged = torch.addmm(weight.flatten(1), b, a.flatten(1), alpha=scale)
        return F.conv2d(x, merged.view_as(weight), bias, *geometry)
    return lora_conv_reference(
        x, weight, a, b, bias, scale,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip


def grouped_lora_conv(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Convolution with one LoRA adapter of peft's form per expert and one expert per sample.

    An expert without samples gets a gradient of zero. A gradient is computed only for those of
    x, weight, a, b and bias that require one.

    Args:
        x: (B, in, H, W); channels-last is what a GPU reads without a copy.
        weight: (out, in, k, k), shared by all experts.
        a: (E, r, in, k, k), the down-projections.
        b: (E, out, r) or (E, out, r, 1, 1), the up-projections.
        index: (B,) integer expert of each sample in any order, -1 for no adapter. A value out of
            range raises on a CPU and trips a device assertion on a GPU.
        bias: (out,).
        scale: s, the same for all experts.
        stride: of height and width, one number for both.
        padding: of zeros, likewise.
        dilation: likewise.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        (B, out, H', W') in the dtype of x, or in autocast's where autocast is on.

    Raises:
        ValueError: if shapes do not fit each other, or the backend cannot run here.
        TypeError: if dtypes differ outside autocast, or the index is not of integers.
    """
    x, weight, a, b, bias = autocast(x, weight, a, b, bias)
    b = b.flatten(2) if b.ndim == 5 else b
    geometry = (_pair(stride), _pair(padding), _pair(dilation))
    _check(x, weight, a, b, bias)
    _check_index(x, index)
    valid = (index >= -1) & (index < len(a))
    torch._assert_async(valid.all(), f"index must lie in -1 ... {len(a) - 1}")
    if uses_op(backend, x):
        if _pointwise(weight, geometry):
            stacks = (weight.flatten(1), a.flatten(2), b, index, bias)
            y = grouped_lora_linear(_rows(x, geometry), *stacks, scale, backend=backend)
            return y.permute(0, 3, 1, 2)
        y, _ = _apply(x, weight, a, b, bias, index, *geometry, float(scale), backend == "triton")
        return y  # type: ignore[no-any-return]
    if not _exact_on_cpu(x):
        return grouped_lora_conv_reference(
            x, weight, a, b, index, bias, scale,
            stride=stride, padding=padding, dilation=dilation,
        )  # fmt: skip
    return _grouped_on_cpu(x, weight, a, b, index, bias, scale, geometry)


def _exact_on_cpu(x: Tensor) -> bool:
    """Where a weight with its adapter merged in is as good as the two apart: not in 16 bits."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _merging_pays(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether W + s B A per call beats two convolutions more.

    Measured on one core, float32, ms merged / apart, channels x height, batch 40, rank 4: forward
    and dx of 3 x 3 5.4 / 11.3 (16 x 32), 3.6 / 5.8 (32 x 16), 3.3 / 4.3 (64 x 8), all gradients
    8.3 / 16.1, 5.4 / 7.4, 5.1 / 5.4; 1 x 1 two to three times as fast. But all gradients at batch
    8, 256 x 14: 96 / 70, as the merged weight's gradient is as large as the base's; and 512 x 7,
    batch 8, where the weight is larger than the images, lost forward too.
    """
    if not _exact_on_cpu(x) or weight.numel() > x.numel():
        return False
    trains = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return not trains or weight.shape[1] <= NARROW


def _grouped_on_cpu(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, index: Tensor, bias: Tensor | None,
    scale: float, geometry: Geometry,
) -> Tensor:  # fmt: skip
    """One convolution with the samples as its groups: of merged weights or of A alone.

    Measured on one core, float32, 5 experts, batch 40, rank 4 (16), ms for forward and dx, merged
    weights / A alone / `grouped_lora_conv_reference` / sorted and expert by expert, channels x
    height: 16 x 32 4.6 / 7.3 / 23 / 8.3 (5.0 / 12 / 55 / 9.6), 32 x 16 4.8 / 6.4 / 8.1 / 6.3
    (4.4 / 7.4 / 14 / 6.8), 64 x 8 4.8 / 3.7 / 5.6 / 3.7 (8.4 / 5.9 / 6.3 / 6.3), 128 x 8
    27 / 12 / 11 / 12: merged pays while a sample's weights are not much larger than the sample.
    """
    images = x.reshape(1, -1, *x.shape[2:])
    if weight.numel() <= 2 * x[0].numel():
        update = scale * torch.bmm(b, a.flatten(2))
        merged = weight.flatten(1) + F.pad(update, (0, 0, 0, 0, 1, 0))
        own = merged[index + 1].view(-1, *weight.shape[1:])
        biases = None if bias is None else bias.repeat(len(x))
        y = F.conv2d(images, own, biases, *geometry, groups=len(x))
        return y.view(len(x), len(weight), *y.shape[2:])
    base = F.conv2d(x, weight, bias, *geometry)
    down = a[index.clamp(min=0)].flatten(0, 1)
    low = F.conv2d(images, down, None, *geometry, groups=len(x))
    up = of_samples(b, index) * scale
    return base + torch.bmm(up, low.view(len(x), a.shape[1], -1)).view(base.shape)


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
    size = _size(x, weight, geometry)
    shape = {"m": len(x) * size[0] * size[1], "n": len(weight), "k": x.shape[1], "r": a.shape[1]}
    entry = select(_kernel(index), x, shape, force)
    if entry is None:
        h = _own_conv(x, a, index, geometry)
        own = b[0] if index is None else of_samples(b, index)
        up = _images(_pixels(h) @ own.transpose(-1, -2), size)
        y = torch.add(F.conv2d(x, weight, bias, *geometry), up, alpha=scale)
        return _dense(y), _dense(h)
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
        return _dense(dx + dx_low)
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
    size = _size(x, weight, (stride, padding, dilation))
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
        through = _images(_pixels(dy) @ own, dy.shape[2:]) * ctx.scale
        dh = through if dh is None else dh + through
    if needs_x:
        dx = _apply_dx(dy, dh, weight, a, index, ctx.size, *ctx.geometry, ctx.force)
    if needs_weight:
        dweight = _conv_weight(x, dy, weight.shape, ctx.geometry)
    if needs_a:
        assert dh is not None
        da = _own_conv_weight(x, dh, a, index, ctx.geometry)
    if needs_b and index is None:
        db = (_pixels(dy).flatten(0, 1).t() @ _pixels(h).flatten(0, 1) * ctx.scale)[None]
    elif needs_b:
        db = outer(_pixels(dy), _pixels(h), index, len(b), ctx.scale, ctx.force)
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


_apply_dx = differentiable(low_rank_conv_dx_op, _dx_setup_context, _dx_backward)
_apply = differentiable(low_rank_conv_op, _setup_context, _backward)


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


def _pair(about: Pair) -> tuple[int, int]:
    first, second = (about, about) if isinstance(about, int) else about
    return first, second


def _pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C); a view of channels-last images."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def _images(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H W, C) as (B, C, H, W), channels-last."""
    return pixels.view(len(pixels), *size, -1).permute(0, 3, 1, 2)


def _dense(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _pointwise(weight: Tensor, geometry: Geometry) -> bool:
    return weight.shape[2:] == (1, 1) and not any(geometry[1])


def _rows(x: Tensor, geometry: Geometry) -> Tensor:
    """(B, H', W', in): the pixels that a 1 x 1 convolution sees."""
    (height, width), *_ = geometry
    return x[:, :, ::height, ::width].permute(0, 2, 3, 1)


def _size(x: Tensor, weight: Tensor, geometry: Geometry) -> list[int]:
    """Height and width of the output."""
    sides = zip(x.shape[2:], weight.shape[2:], *geometry, strict=True)
    return [(n + 2 * pad - step * (k - 1) - 1) // stride + 1 for n, k, stride, pad, step in sides]


def _check(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, groups: int = 1
) -> None:
    if x.ndim != 4 or weight.ndim != 4 or a.ndim != 5 or b.ndim != 3:
        raise ValueError(
            "x must be (B, in, H, W), weight (out, in, k, k), a (r, in, k, k), b (out, r), a and "
            f"b with a leading E in the grouped form; got {[t.ndim for t in (x, weight, a, b)]} "
            "dimensions"
        )
    out, inner, *kernel = weight.shape
    experts, rank = a.shape[:2]
    inner *= groups
    fits = x.shape[1] == inner and a.shape[2:] == (inner, *kernel)
    fits = fits and out % groups == rank % groups == 0
    fits = fits and b.shape == (experts, out, rank // groups)
    if not fits or (bias is not None and bias.shape != (out,)):
        raise ValueError(
            f"weight {tuple(weight.shape)} with groups={groups} needs x (B, {inner}, H, W), "
            f"a (r, {', '.join(map(str, (inner, *kernel)))}), b ({out}, r / groups) and "
            f"bias ({out},); got x {tuple(x.shape)}, a {tuple(a.shape)}, b {tuple(b.shape)}"
        )
    others = [weight, a, b] + ([] if bias is None else [bias])
    if any(t.dtype != x.dtype for t in others):
        raise TypeError(f"x is {x.dtype}; weight, a, b and bias must be too (or use autocast)")


def _check_index(x: Tensor, index: Tensor) -> None:
    if index.shape != x.shape[:1]:
        raise ValueError(f"index must be ({len(x)},), one per sample, got {tuple(index.shape)}")
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"index must be of integers, got {index.dtype}")
