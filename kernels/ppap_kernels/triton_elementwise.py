"""Triton kernels that read each input once: guided steps, transfer loss, weight merging."""
# Kernel bodies are Triton's language, which carries no types for mypy to check.
# ruff: noqa: ANN001, ANN202, N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["guided_ddim", "guided_ddpm", "merge_lora", "transfer_loss"]

MASKED = tl.constexpr(-1e30)


@triton.jit
def clipped(x0):
    """Clipped to [-1, 1]; NaN stays NaN, as in torch, where a GPU's own maximum would drop it."""
    x0 = tl.maximum(x0, -1.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def guided_ddim_kernel(
    x_t, eps, gradient, noise, out, signal, signal_prev, sigma,
    pixels, x_b, eps_b, gradient_b, noise_b,
    CLIP: tl.constexpr, GRADIENT: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of pixels of one image; coefficients keep their dtype until 1 - abar is taken."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    abar, abar_prev = tl.load(signal + image), tl.load(signal_prev + image)
    std = tl.load(sigma + image)
    root = tl.sqrt(abar.to(tl.float32))
    rest = tl.sqrt((1.0 - abar).to(tl.float32))
    direction = tl.sqrt(tl.maximum((1.0 - abar_prev - std * std).to(tl.float32), 0.0))
    x = tl.load(x_t + image * x_b + at, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(eps + image * eps_b + at, mask=inside, other=0.0).to(tl.float32)
    if CLIP:
        x0 = clipped((x - rest * e) / root)
        e = (x - root * x0) / rest
    if GRADIENT:
        g = tl.load(gradient + image * gradient_b + at, mask=inside, other=0.0).to(tl.float32)
        e -= rest * g
    x0 = (x - rest * e) / root
    y = tl.sqrt(abar_prev.to(tl.float32)) * x0 + direction * e
    if NOISE:
        z = tl.load(noise + image * noise_b + at, mask=inside, other=0.0).to(tl.float32)
        y += std.to(tl.float32) * z
    tl.store(out + image * pixels + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def guided_ddpm_kernel(
    x_t, eps, log_variance, gradient, noise, out, signal, x0_weight, x_t_weight, variance,
    pixels, x_b, eps_b, log_variance_b, gradient_b, noise_b,
    CLIP: tl.constexpr, PIXELWISE: tl.constexpr, VARIANCE: tl.constexpr,
    GRADIENT: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of pixels of one image; log_variance_b is the image stride of log_variance."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    abar = tl.load(signal + image)
    root = tl.sqrt(abar.to(tl.float32))
    rest = tl.sqrt((1.0 - abar).to(tl.float32))
    x = tl.load(x_t + image * x_b + at, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(eps + image * eps_b + at, mask=inside, other=0.0).to(tl.float32)
    x0 = (x - rest * e) / root
    if CLIP:
        x0 = clipped(x0)
    y = tl.load(x0_weight + image).to(tl.float32) * x0
    y += tl.load(x_t_weight + image).to(tl.float32) * x
    if PIXELWISE:
        log_at = log_variance + image * log_variance_b + at
        log_var = tl.load(log_at, mask=inside, other=0.0).to(tl.float32)
    else:
        log_var = tl.load(log_variance + image * log_variance_b).to(tl.float32)
    if GRADIENT:
        g = tl.load(gradient + image * gradient_b + at, mask=inside, other=0.0).to(tl.float32)
        if VARIANCE:
            y += tl.load(variance + image).to(tl.float32) * g
        else:
            y += tl.exp(log_var) * g
    if NOISE:
        z = tl.load(noise + image * noise_b + at, mask=inside, other=0.0).to(tl.float32)
        y += tl.exp(0.5 * log_var) * z
    tl.store(out + image * pixels + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def transfer_loss_kernel(
    student, teacher, losses, gradient, rows, classes, student_b, teacher_b, inverse_tau,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """Both softmaxes of a tile of whole rows, in registers; rows past the end repeat the last."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    safe = tl.minimum(row, rows - 1).to(tl.int64)
    at = tl.arange(0, BLOCK_CLASSES)
    inside = (at < classes)[None, :]
    s_at = student + safe[:, None] * student_b + at[None, :]
    t_at = teacher + safe[:, None] * teacher_b + at[None, :]
    s = tl.where(inside, tl.load(s_at, mask=inside, other=0.0).to(tl.float32), MASKED)
    t = tl.load(t_at, mask=inside, other=0.0).to(tl.float32) * inverse_tau
    t = tl.where(inside, t, MASKED)
    s -= tl.max(s, 1)[:, None]
    t -= tl.max(t, 1)[:, None]
    exp_s, exp_t = tl.exp(s), tl.exp(t)
    sum_s, sum_t = tl.sum(exp_s, 1)[:, None], tl.sum(exp_t, 1)[:, None]
    p = exp_t / sum_t
    terms = p * ((t - tl.log(sum_t)) - (s - tl.log(sum_s)))
    tl.store(losses + row, tl.sum(tl.where(p == 0, 0.0, terms), 1), mask=row < rows)
    g = (exp_s / sum_s - p) / rows
    g_at = gradient + safe[:, None] * classes + at[None, :]
    tl.store(g_at, g.to(gradient.dtype.element_ty), mask=inside & (row < rows)[:, None])


@triton.jit
def merge_lora_kernel(
    weight, a, b, out, rows, cols, rank, inner, scale,
    w_o, w_i, w_h, w_w, o_e, o_o, o_i, o_h, o_w, a_e, a_r, a_c, b_e, b_m, b_r,
    PRECISION: tl.constexpr, KERNEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Give out = weight + scale * (b a), the product laid over the elements of the weight."""
    expert = tl.program_id(2).to(tl.int64)
    out += expert * o_e
    a += expert * a_e
    b += expert * b_e
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, rank, BLOCK_R):
        rs = start + tl.arange(0, BLOCK_R)
        b_at = b + i[:, None] * b_m + rs[None, :] * b_r
        b_tile = tl.load(b_at, mask=(i < rows)[:, None] & (rs < rank)[None, :], other=0.0)
        a_at = a + rs[:, None] * a_r + j[None, :] * a_c
        a_tile = tl.load(a_at, mask=(rs < rank)[:, None] & (j < cols)[None, :], other=0.0)
        acc = tl.dot(b_tile, a_tile, acc, input_precision=PRECISION)
    flat = i[:, None] * cols + j[None, :]
    x = flat % KERNEL
    y = flat // KERNEL % KERNEL
    channels = flat // (KERNEL * KERNEL)
    c = channels % inner
    o = channels // inner
    mask = (i < rows)[:, None] & (j < cols)[None, :]
    w = tl.load(weight + o * w_o + c * w_i + y * w_h + x * w_w, mask=mask, other=0.0)
    merged = w.to(tl.float32) + scale * acc
    o_at = out + o * o_o + c * o_i + y * o_h + x * o_w
    tl.store(o_at, merged.to(out.dtype.element_ty), mask=mask)


def guided_ddim(
    x_t: Tensor, eps: Tensor, vectors: tuple[Tensor, Tensor, Tensor],
    images: tuple[Tensor | None, Tensor | None], clip: bool, config: Mapping[str, int],
) -> Tensor:  # fmt: skip
    """Launch; vectors: signal, signal_prev, sigma; images: gradient, noise."""
    out = x_t.new_empty(x_t.shape)
    if out.numel():
        pixels = x_t[0].numel()
        (x, x_b), (e, e_b), (g, g_b), (z, z_b) = (_images(t, x_t) for t in (x_t, eps, *images))
        with torch.cuda.device_of(x_t):
            guided_ddim_kernel[(triton.cdiv(pixels, config["BLOCK"]), len(x_t))](
                x, e, g, z, out, *(v.contiguous() for v in vectors),
                pixels, x_b, e_b, g_b, z_b,
                CLIP=clip, GRADIENT=images[0] is not None, NOISE=images[1] is not None, **config,
            )  # fmt: skip
    return out


def guided_ddpm(
    x_t: Tensor, eps: Tensor, vectors: tuple[Tensor, Tensor, Tensor],
    rest: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    clip: bool, config: Mapping[str, int],
) -> Tensor:  # fmt: skip
    """Launch; vectors: signal and the mean's weights; rest: log-variance, variance, g, noise."""
    out = x_t.new_empty(x_t.shape)
    if out.numel():
        log_variance, variance, gradient, noise = rest
        pixels, pixelwise = x_t[0].numel(), log_variance.ndim > 1
        (x, x_b), (e, e_b) = _images(x_t, x_t), _images(eps, x_t)
        (g, g_b), (z, z_b) = _images(gradient, x_t), _images(noise, x_t)
        v, v_b = _images(log_variance, x_t) if pixelwise else (log_variance.contiguous(), 1)
        with torch.cuda.device_of(x_t):
            guided_ddpm_kernel[(triton.cdiv(pixels, config["BLOCK"]), len(x_t))](
                x, e, v, g, z, out, *(c.contiguous() for c in vectors),
                x if variance is None else variance.contiguous(),
                pixels, x_b, e_b, v_b, g_b, z_b,
                CLIP=clip, PIXELWISE=pixelwise, VARIANCE=variance is not None,
                GRADIENT=gradient is not None, NOISE=noise is not None, **config,
            )  # fmt: skip
    return out


def transfer_loss(
    student: Tensor, teacher: Tensor, tau: float, config: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """Launch: student, teacher (B, K) -> losses (B,) float32, gradient (B, K)."""
    rows, classes = student.shape
    s, t = _rows(student), _rows(teacher)
    losses = student.new_empty(rows, dtype=torch.float32)
    gradient = student.new_empty(rows, classes)
    with torch.cuda.device_of(student):
        transfer_loss_kernel[(triton.cdiv(rows, config["BLOCK_ROWS"]),)](
            s, t, losses, gradient, rows, classes, s.stride(0), t.stride(0), 1 / tau,
            BLOCK_CLASSES=triton.next_power_of_2(classes), **config,
        )  # fmt: skip
    return losses, gradient


def merge_lora(
    weight: Tensor, a: Tensor, b: Tensor, out: Tensor, scale: float, config: Mapping[str, int]
) -> None:
    """Launch: weight (out, in) or (out, in, k, k), a (r, C), b (R, r), R C = out in k k.

    out is like weight; for E experts out, a and b have a leading E.
    """
    grouped = a.ndim == 3
    outs, a, b = (t if grouped else t[None] for t in (out, a, b))
    if max(_extent(weight), _extent(outs[0])) >= 2**31:
        raise ValueError("the kernel indexes weights in 32 bits: merge in slices of out-channels")
    square = weight.ndim == 4
    (experts, rows, _), (_, rank, cols) = b.shape, a.shape
    w_strides, o_strides = (t.stride() + (() if square else (0, 0)) for t in (weight, outs))
    tiles = (triton.cdiv(rows, config["BLOCK_M"]), triton.cdiv(cols, config["BLOCK_N"]))
    with torch.cuda.device_of(weight):
        merge_lora_kernel[(*tiles, experts)](
            weight, a, b, outs, rows, cols, rank, weight.shape[1], scale,
            *w_strides, *o_strides, *a.stride(), *b.stride(),
            PRECISION="ieee" if a.dtype == torch.float32 else "tf32",
            KERNEL=weight.shape[-1] if square else 1, **config,
        )  # fmt: skip


def _images(images: Tensor | None, like: Tensor) -> tuple[Tensor, Any]:
    """The tensor with each image contiguous, copied only if it is not, and its image stride."""
    if images is None:
        return like, 0
    dense = images if images[0].is_contiguous() else images.contiguous()
    return dense, dense.stride(0)


def _extent(tensor: Tensor) -> int:
    """One more than the largest offset of an element."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
