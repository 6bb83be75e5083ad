"""LoRA on a convolution in peft's form: y = conv(x, W) + b + s conv1x1(conv(x, A), B).

A is k x k down to r channels, B is 1 x 1 up. On a GPU both branches are one kernel
(`lora_conv_operator`); on a CPU they are what is fastest there (`lora_conv_cpu`).

An adapter that does not change is cheaper still: `merge_lora` writes W + s B A once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap_kernels.conv_shapes import (
    Pair,
    as_pair,
    check_index,
    check_shapes,
    pointwise,
    seen_pixels,
)
from ppap_kernels.dispatch import Backend, uses_op
from ppap_kernels.grouped_lora_linear import grouped_lora_linear
from ppap_kernels.lora_conv_cpu import exact_when_merged, grouped_on_cpu, merging_pays
from ppap_kernels.lora_conv_operator import low_rank_conv
from ppap_kernels.lora_linear import lora_linear
from ppap_kernels.operators import autocast

__all__ = [
    "grouped_lora_conv",
    "grouped_lora_conv_reference",
    "lora_conv",
    "lora_conv_reference",
]


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
    geometry = (as_pair(stride), as_pair(padding), as_pair(dilation))
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
    geometry = (as_pair(stride), as_pair(padding), as_pair(dilation))
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
    geometry = (as_pair(stride), as_pair(padding), as_pair(dilation))
    check_shapes(x, weight, a[None], b[None], bias, groups)
    kernel = "low_rank_matmul" if pointwise(weight, geometry) else "low_rank_conv"
    if uses_op(backend, x, kernel) and groups == 1:
        if kernel == "low_rank_matmul":
            matrices = (weight.flatten(1), a.flatten(1), b)
            y = lora_linear(seen_pixels(x, geometry), *matrices, bias, scale, backend=backend)
            return y.permute(0, 3, 1, 2)
        stacks = (a[None], b[None], bias, None)
        y, _ = low_rank_conv(x, weight, *stacks, *geometry, float(scale), backend == "triton")
        return y  # type: ignore[no-any-return]
    if backend == "triton":
        raise ValueError(f"the Triton kernel takes groups=1, got {groups}; use backend='torch'")
    if groups == 1 and merging_pays(x, weight, a, b):
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
    geometry = (as_pair(stride), as_pair(padding), as_pair(dilation))
    check_shapes(x, weight, a, b, bias)
    check_index(x, index)
    index = index.long()  # the unsigned have no -1
    valid = (index >= -1) & (index < len(a))
    torch._assert_async(valid.all(), f"index must lie in -1 ... {len(a) - 1}")
    flat = pointwise(weight, geometry)
    if uses_op(backend, x, "grouped_low_rank_matmul" if flat else "grouped_low_rank_conv"):
        if flat:
            stacks = (weight.flatten(1), a.flatten(2), b, index, bias)
            y = grouped_lora_linear(seen_pixels(x, geometry), *stacks, scale, backend=backend)
            return y.permute(0, 3, 1, 2)
        y, _ = low_rank_conv(
            x, weight, a, b, bias, index, *geometry, float(scale), backend == "triton"
        )
        return y  # type: ignore[no-any-return]
    if not len(x) or not exact_when_merged(x):
        return grouped_lora_conv_reference(
            x, weight, a, b, index, bias, scale,
            stride=stride, padding=padding, dilation=dilation,
        )  # fmt: skip
    return grouped_on_cpu(x, weight, a, b, index, bias, scale, geometry)
