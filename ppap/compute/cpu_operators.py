"""Operators that a traced graph uses on a CPU in place of what inductor makes of PyTorch's own.

Each computes the same up to rounding, and was found to be faster in a guided step of small images
(figures from a server CPU with 2 cores, AVX-512, 64 images of 32x32), but for one, which inductor
gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap.compute.custom_operators import cpu_operator

__all__ = ["REPLACEMENTS", "VECTOR", "VECTORISED"]

FEW_TAPS = 32
"""Input channels times kernel size up to which a convolution's input gradient is a product."""

VECTOR = 64
"""Bytes of the longest vectors of a CPU."""
VECTORISED = {torch.float32, torch.bfloat16}
"""What oneDNN's products and PyTorch's pooling for channels-last have vectors for."""

_aten = torch.ops.aten


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    count: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> Any:
    """Group norm by sums over each channel, which vectorise over channels whatever the groups.

    Inductor's own goes through groups, of two channels in a small U-Net: two lanes of sixteen.
    A channel's sums are those of its differences from one of its pixels, and a group's variance
    is that within its channels and that of their means, so that a large mean costs no digits.
    """
    if x.dtype != torch.float32 or x.ndim < 3:
        return NotImplemented
    axes = list(range(2, x.ndim))
    pivot = x[(slice(None), slice(None), *[slice(1)] * len(axes))]
    apart = x - pivot
    offset = apart.sum(axes) / pixels
    within = (apart * apart).sum(axes) / pixels - offset * offset
    means = (pivot.flatten(1) + offset).view(count, groups, -1)
    mean = means.mean(-1)
    between = (means - mean[:, :, None]).square().mean(-1)
    variance = within.view(count, groups, -1).mean(-1).clamp(min=0) + between
    rstd = (variance + eps).rsqrt()
    share = (count, groups, channels // groups)
    scale = rstd[:, :, None].expand(share).reshape(count, channels)
    scale = scale if weight is None else scale * weight
    shift = -mean[:, :, None].expand(share).reshape(count, channels) * scale
    shift = shift if bias is None else shift + bias
    # Inductor writes out what is concatenated; else it would compute both anew for each pixel.
    scale, shift = torch.cat([scale, shift]).view(2, count, channels, *[1] * len(axes))
    return x * scale + shift, mean, rstd


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Any:  # fmt: skip
    """One of sequences that is a product, as in attention, done as one; a stem channels-last."""
    turned = _channels_last_too(weight, groups)
    if turned is not None:
        about = stride, padding, dilation, transposed, output_padding, groups
        return _aten.convolution.default(x, turned, bias, *about)
    if x.ndim != 3 or weight.shape[2:] != (1,) or transposed or groups > 1:
        return NotImplemented
    if list(stride) != [1] or list(padding) != [0]:
        return NotImplemented
    rows = x.transpose(1, 2).reshape(-1, x.shape[1])
    found = F.linear(rows, weight[:, :, 0], bias)
    return found.view(len(x), x.shape[2], -1).transpose(1, 2)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: list[int] | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int, output_mask: list[bool],
) -> Any:  # fmt: skip
    """The gradient in an image as a product: for patches, and where channels are few.

    Of few channels it is a product per tap, then a sum of shifted planes; oneDNN's fills a vector
    of sixteen channels with one or three, and takes 1050 us instead of 200.
    """
    turned = _channels_last_too(weight, groups)
    if turned is not None:
        about = stride, padding, dilation, transposed, output_padding, groups, output_mask
        return _aten.convolution_backward.default(gradient, x, turned, bias_sizes, *about)
    if list(output_mask) != [True, False, False] or x.ndim != 4 or transposed or groups > 1:
        return NotImplemented
    count, channels, height, width = x.shape
    outputs, _, *kernel = weight.shape
    across = gradient.shape[2:]
    covered = [size * many for size, many in zip(kernel, across, strict=True)]
    patched = list(stride) == kernel and {*padding} == {0} and {*dilation} == {1}
    if patched and covered == [height, width]:
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
        patches = torch.mm(rows, weight.reshape(outputs, -1))
        patches = patches.view(count, *across, channels, *kernel)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(x.shape), None, None
    # In bfloat16 oneDNN's own takes 550 us.
    few = weight[0].numel() <= FEW_TAPS and x.dtype == torch.float32
    if {*stride, *dilation} != {1} or not few:
        return NotImplemented
    margins = [size - 1 - pad for size, pad in zip(kernel, padding, strict=True)]
    if min(margins) < 0:
        return NotImplemented
    rows = gradient.reshape(count, outputs, -1)
    planes = torch.matmul(weight.reshape(outputs, -1).t(), rows)
    planes = planes.view(count, channels, *kernel, *across)
    planes = F.pad(planes, (margins[1], margins[1], margins[0], margins[0]))
    shifted = [
        planes[:, :, i, j, top : top + height, left : left + width]
        for i, top in enumerate(reversed(range(kernel[0])))
        for j, left in enumerate(reversed(range(kernel[1])))
    ]
    total = shifted[0]
    for plane in shifted[1:]:
        total = total + plane
    return total, None, None


def _channels_last_too(weight: Tensor, groups: int) -> Tensor | None:
    """The same (N, 1, H, W) weight with strides of channels-last alone; None if it has them.

    Of one input channel strides leave open which layout it is, and those of its images do, too.
    oneDNN then computes in the other one and turns around what came channels-last: for 64 images
    of 32x32 and 16 filters the gradient in the weight took 2090 us instead of 370, the
    convolution 1060 instead of 610.
    """
    if weight.ndim != 4 or weight.shape[1] != 1 or groups > 1:
        return None
    _, _, height, width = weight.shape
    strides = (height * width, 1, width, 1)
    if weight.stride() == strides or not weight.is_contiguous():
        return None
    return weight.as_strided(weight.shape, strides)


@cpu_operator(
    "max_pool2d(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil)"
    " -> (Tensor, Tensor)"
)
def _max_pool2d(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int],
    ceil: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor] = _aten.max_pool2d_with_indices(
        _channels_last(x), kernel, stride, padding, dilation, ceil
    )
    return found


@cpu_operator(
    "max_pool2d_backward(Tensor gradient, Tensor x, int[] kernel, int[] stride, int[] padding,"
    " int[] dilation, bool ceil, Tensor indices) -> Tensor"
)
def _max_pool2d_backward(
    gradient: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    found: Tensor = _aten.max_pool2d_with_indices_backward(
        _channels_last(gradient), _channels_last(x), kernel, stride, padding, dilation, ceil,
        _channels_last(indices),
    )  # fmt: skip
    return found


@cpu_operator(
    "avg_pool2d_backward(Tensor gradient, Tensor x, int[] kernel, int[] stride, int[] padding,"
    " bool ceil, bool count_padding, int? divisor) -> Tensor"
)
def _avg_pool2d_backward(
    gradient: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    ceil: bool, count_padding: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    found: Tensor = _aten.avg_pool2d_backward(
        gradient.contiguous(), x.contiguous(), kernel, stride, padding, ceil, count_padding, divisor
    )
    return found


@cpu_operator("softmax(Tensor x) -> Tensor")
def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.contiguous(), -1)


@cpu_operator("gelu(Tensor x, str approximate) -> Tensor")
def _gelu(x: Tensor, approximate: str) -> Tensor:
    found: Tensor = _aten.gelu(x.contiguous(), approximate=approximate)
    return found


@cpu_operator("gelu_backward(Tensor gradient, Tensor x, str approximate) -> Tensor")
def _gelu_backward(gradient: Tensor, x: Tensor, approximate: str) -> Tensor:
    found: Tensor = _aten.gelu_backward(
        gradient.contiguous(), x.contiguous(), approximate=approximate
    )
    return found


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pooled(
    x: Tensor, kernel_size: list[int], stride: list[int] | None = None,
    padding: list[int] | int = 0, dilation: list[int] | int = 1, ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """Max pooling by PyTorch's kernels for channels-last, which inductor would write anew.

    Theirs: 440 us and 180 us backward; inductor's 700 us and 1300 us.
    """
    if x.ndim != 4 or x.dtype not in VECTORISED:
        return NotImplemented
    about = _pairs(kernel_size), _pairs(stride or kernel_size), _pairs(padding), _pairs(dilation)
    return torch.ops.ppap.max_pool2d(_channels_last(x), *about, ceil_mode)


def _pooled_backward(
    gradient: Tensor, x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil_mode: bool, indices: Tensor,
) -> Any:  # fmt: skip
    if x.ndim != 4 or x.dtype not in VECTORISED:
        return NotImplemented
    about = _pairs(kernel_size), _pairs(stride or kernel_size), _pairs(padding), _pairs(dilation)
    return torch.ops.ppap.max_pool2d_backward(
        _channels_last(gradient), _channels_last(x), *about, ceil_mode, indices
    )


def _averaged_backward(
    gradient: Tensor, x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Any:  # fmt: skip
    """Average pooling whose windows may reach beyond the image, which inductor gets wrong.

    Its gradient leaves out what such a window gives to the image (torch 2.14).
    """
    if not ceil_mode:
        return NotImplemented
    about = _pairs(kernel_size), _pairs(stride or kernel_size), _pairs(padding)
    return torch.ops.ppap.avg_pool2d_backward(
        gradient, x, *about, ceil_mode, count_include_pad, divisor_override
    )


def _softmax_of_rows(x: Tensor, dim: int, half_to_float: bool) -> Any:
    """Attention's softmax by PyTorch's kernel: 405 us where inductor's takes 615, for 65 tokens."""
    fills = x.shape[-1] * x.itemsize >= VECTOR
    rows = x.ndim > 2 and dim in (-1, x.ndim - 1) and fills
    if x.dtype != torch.float32 or half_to_float or not rows:
        return NotImplemented
    return torch.ops.ppap.softmax(x)


def _activated(x: Tensor, approximate: str = "none") -> Any:
    """GELU by oneDNN, as PyTorch does it, where inductor takes half as long again."""
    return torch.ops.ppap.gelu(x, approximate) if x.dtype in VECTORISED else NotImplemented


def _activated_backward(gradient: Tensor, x: Tensor, approximate: str = "none") -> Any:
    if x.dtype not in VECTORISED or gradient.dtype != x.dtype:
        return NotImplemented
    return torch.ops.ppap.gelu_backward(gradient, x, approximate)


def _pairs(sizes: list[int] | int) -> list[int]:
    """PyTorch's own schema lets one size stand for both."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes * 2 if len(sizes) == 1 else sizes


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    _aten.native_group_norm.default: _group_norm,
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.max_pool2d_with_indices.default: _pooled,
    _aten.max_pool2d_with_indices_backward.default: _pooled_backward,
    _aten.avg_pool2d_backward.default: _averaged_backward,
    _aten._softmax.default: _softmax_of_rows,
    _aten.gelu.default: _activated,
    _aten.gelu_backward.default: _activated_backward,
}
"""A decomposition table for :func:`torch.fx.experimental.proxy_tensor.make_fx`.

Each takes an operator's arguments and gives its result, or NotImplemented for what stays as it is.
"""
