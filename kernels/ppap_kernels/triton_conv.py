"""A Triton kernel for a convolution with a low-rank side path, for one adapter or for many.

An implicit matrix product over channels-last images: the rows of `triton_matmul`'s kernel become
output pixels, its K-loop runs over (tap, block of channels), and the tile of x of one step feeds
both the base convolution and the k x k convolution down to r channels. The 1 x 1 convolution up
is one more product on the tile that is already in registers.

The gradient in the input is the same gather with other strides: a pixel of phase (i, j) modulo
the stride sees only the taps of its phase, at stride 1, so each phase is one launch over strided
views, and nothing is multiplied by the zeros of a strided convolution's transpose.
"""
# Kernel bodies are Triton's language, which carries no types for mypy to check.
# ruff: noqa: ANN001, ANN202, N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppap_kernels.triton_matmul import plan_rows, precision, rank_block

__all__ = ["low_rank_conv", "low_rank_conv_dx"]


@triton.jit
def low_rank_conv_kernel(
    x, g, w, a, b, bias, y, h, order, tile_group, tile_first, tile_end,
    m, n, k, rank, pixels, y_width, height, width, taps, taps_w, scale,
    mul_h, mul_w, first_h, first_w, step_h, step_w,
    x_b, x_h, x_w, y_b, y_h, y_w,
    w_h, w_w, w_k, w_n, a_e, a_h, a_w, a_r, a_c, b_e, b_r, b_n,
    HAS_BIAS: tl.constexpr, GROUPED: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Forward: h = conv(x, a) and y = conv(x, w) + scale (h b) + bias, of each sample's expert.

    Transposed: y = conv(x, w) + conv(g, a), where x and g are gradients and w and a the taps of
    one phase. Tap (i, j) of output (r, c) is input (r mul + first + i step, c ...); g (of x's
    height and width, rank channels) and h are dense, channels of x and y have stride 1.
    """
    tile = tl.program_id(0)
    rank_here = rank
    if GROUPED:
        group = tl.load(tile_group + tile)
        first = tl.load(tile_first + tile)
        end = tl.load(tile_end + tile)
        if first >= end:
            return
        position = first + tl.arange(0, BLOCK_M)
        in_m = position < end
        sample = tl.load(order + position // pixels, mask=in_m, other=0)
        rank_here = tl.where(group < 0, 0, rank)
        a += tl.maximum(group, 0).to(tl.int64) * a_e
        b += tl.maximum(group, 0).to(tl.int64) * b_e
    else:
        position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        in_m = position < m
        sample = position // pixels
    pixel = position % pixels
    top = pixel // y_width * mul_h + first_h
    left = pixel % y_width * mul_w + first_w
    x_row = sample.to(tl.int64) * x_b
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = cols < n
    ranks = tl.arange(0, BLOCK_R)
    in_r = ranks < rank_here

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    low = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    blocks = tl.cdiv(k, BLOCK_K)
    for step in range(taps * blocks):
        tap = step // blocks
        i = tap // taps_w
        j = tap % taps_w
        ks = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = ks < k
        at_h = top + i * step_h
        at_w = left + j * step_w
        inside = in_m & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
        x_at = x + (x_row + at_h * x_h + at_w * x_w)[:, None] + ks[None, :]
        x_tile = tl.load(x_at, mask=inside[:, None] & in_k[None, :], other=0.0)
        w_at = w + i * w_h + j * w_w + ks[:, None] * w_k + cols[None, :] * w_n
        w_tile = tl.load(w_at, mask=in_k[:, None] & in_n[None, :], other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
        if not TRANSPOSED:
            a_at = a + i * a_h + j * a_w + ks[:, None] * a_c + ranks[None, :] * a_r
            a_tile = tl.load(a_at, mask=in_k[:, None] & in_r[None, :], other=0.0)
            low = tl.dot(x_tile, a_tile, low, input_precision=PRECISION)

    if TRANSPOSED:
        g_row = sample.to(tl.int64) * height * width
        for tap in range(taps):
            i = tap // taps_w
            j = tap % taps_w
            at_h = top + i * step_h
            at_w = left + j * step_w
            inside = in_m & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
            g_at = g + (g_row + at_h * width + at_w)[:, None] * rank + ranks[None, :]
            g_tile = tl.load(g_at, mask=inside[:, None] & in_r[None, :], other=0.0)
            a_at = a + i * a_h + j * a_w + ranks[:, None] * a_r + cols[None, :] * a_c
            a_tile = tl.load(a_at, mask=in_r[:, None] & in_n[None, :], other=0.0)
            acc = tl.dot(g_tile, a_tile, acc, input_precision=PRECISION)
    else:
        if tl.program_id(1) == 0:
            h_row = sample.to(tl.int64) * pixels + pixel
            h_mask = in_m[:, None] & (ranks < rank)[None, :]
            h_at = h + h_row[:, None] * rank + ranks[None, :]
            tl.store(h_at, low.to(h.dtype.element_ty), mask=h_mask)
        b_at = b + ranks[:, None] * b_r + cols[None, :] * b_n
        b_tile = tl.load(b_at, mask=in_r[:, None] & in_n[None, :], other=0.0)
        low_tile = (low * scale).to(b_tile.dtype)
        acc = tl.dot(low_tile, b_tile, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=in_n, other=0.0).to(tl.float32)[None, :]
    y_row = sample.to(tl.int64) * y_b + pixel // y_width * y_h + pixel % y_width * y_w
    y_at = y + y_row[:, None] + cols[None, :]
    tl.store(y_at, acc.to(y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def low_rank_conv(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, index: Tensor | None,
    size: Sequence[int], geometry: Sequence[Sequence[int]], scale: float,
    config: Mapping[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch forward.

    Args:
        x: (B, in, H, W); copied if it is not channels-last, as weight and a are.
        weight: (out, in, k, k).
        a: (E, r, in, k, k).
        b: (E, out, r).
        bias: (out,).
        index: (B,) expert of each sample, -1 for none; None for E = 1 and no choice.
        size: height and width of the output.
        geometry: stride, padding and dilation, each by height and width.
        scale: factor of the low-rank path.
        config: of the launch.

    Returns:
        y (B, out, ...) and h (B, r, ...), channels-last.
    """
    y = _channels_last(x, len(weight), size)
    h = _channels_last(x, a.shape[1], size)
    stride, padding, dilation = geometry
    _launch(x, x, _taps_out(weight), _taps_out(a), b, bias, y, h, index, scale, False, config,
            (*stride, -padding[0], -padding[1], *dilation))  # fmt: skip
    return y, h


def low_rank_conv_dx(
    dy: Tensor, dlow: Tensor, weight: Tensor, a: Tensor, index: Tensor | None,
    size: Sequence[int], geometry: Sequence[Sequence[int]], config: Mapping[str, int],
) -> Tensor:  # fmt: skip
    """Launch the gradient in x (B, in, *size) of dy (B, out, ...) and dlow (B, r, ...)."""
    dx = _channels_last(dy, weight.shape[1], size)
    weight, a = _taps_out(weight), _taps_out(a)
    phases_h, phases_w = (
        list(_phases(*about)) for about in zip(*geometry, weight.shape[2:], strict=True)
    )
    for i, (first_h, step_h, tap_h, each_h) in enumerate(phases_h):
        for j, (first_w, step_w, tap_w, each_w) in enumerate(phases_w):
            part = dx[:, :, i :: len(phases_h), j :: len(phases_w)]
            taps = (..., slice(tap_h, None, each_h), slice(tap_w, None, each_w))
            if part.numel():
                _launch(dy, dlow, weight[taps], a[taps], a, None, part, part, index, 1.0, True,
                        config, (1, 1, first_h, first_w, step_h, step_w))  # fmt: skip
    return dx


def _phases(stride: int, padding: int, dilation: int, kernel: int) -> Any:
    """For each input position modulo the stride: first output, its step, first tap, tap step.

    Tap t of output o is input o stride - padding + t dilation; solved for o at input
    p + stride c it is o = c + first + step (index of t among the taps of this phase).
    """
    common = math.gcd(stride, dilation)
    each = stride // common
    for phase in range(stride):
        fit = (t for t in range(each) if (phase + padding - t * dilation) % stride == 0)
        tap = next(fit, kernel)
        yield (phase + padding - tap * dilation) // stride, -dilation // common, tap, each


def _launch(
    x: Tensor, g: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None,
    y: Tensor, h: Tensor, index: Tensor | None, scale: float, transposed: bool,
    config: Mapping[str, int], gather: Sequence[int],
) -> None:  # fmt: skip
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    batch, k, height, width = x.shape
    n, pixels, rank = y.shape[1], y.shape[2] * y.shape[3], a.shape[1]
    w_n, w_k, w_h, w_w = weight.stride()
    a_e, a_r, a_c, a_h, a_w = a.stride()
    if transposed:
        w_n, w_k = w_k, w_n
    b_e, b_n, b_r = b.stride()[:3]
    rows = batch * pixels
    with torch.cuda.device_of(x):
        if index is None:
            plan, tiles = (x, x, x, x), triton.cdiv(rows, config["BLOCK_M"])
        else:
            p = plan_rows(index, len(a), pixels, config["BLOCK_M"])
            plan, tiles = (p.order, p.tile_group, p.tile_first, p.tile_end), len(p.tile_group)
        low_rank_conv_kernel[(tiles, triton.cdiv(n, config["BLOCK_N"]))](
            x, g, weight, a, b, weight if bias is None else bias.contiguous(), y, h, *plan,
            rows, n, k, rank, pixels, y.shape[3], height, width,
            weight.shape[2] * weight.shape[3], weight.shape[3], scale, *gather,
            *_pixel_strides(x), *_pixel_strides(y),
            w_h, w_w, w_k, w_n, a_e, a_h, a_w, a_r, a_c, b_e, b_r, b_n,
            HAS_BIAS=bias is not None, GROUPED=index is not None, TRANSPOSED=transposed,
            PRECISION=precision(x), BLOCK_R=rank_block(rank), **config,
        )  # fmt: skip


def _channels_last(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    return like.new_empty(len(like), *size, channels).permute(0, 3, 1, 2)


def _taps_out(kernels: Tensor) -> Tensor:
    """(..., in, k, k) with the stride of its in-channels 1, so that tiles load in rows."""
    flat = kernels.flatten(0, -4)
    return flat.contiguous(memory_format=torch.channels_last).view(kernels.shape)


def _pixel_strides(images: Tensor) -> tuple[int, int, int]:
    return images.stride(0), images.stride(2), images.stride(3)
