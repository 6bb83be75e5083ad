"""Weights with their adapter merged in, written into a buffer that already exists.

W + s (B A), computed once per change of expert and not once per call. A buffer that stays where
it is keeps compiled code and captured graphs valid. The convolution form is loralib's
(microsoft/LoRA, ConvLoRA): A (r k, in k), B (out k, r k), their product of shape (out k, in k)
viewed as the weight (out, in, k, k).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, select, uses_op

__all__ = ["merge_lora", "merge_lora_op", "merge_lora_reference"]


def merge_lora_reference(weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """W + s (B A) in plain torch, as a new tensor. See `merge_lora`."""
    product = (b @ a).reshape(weight.shape)
    return (weight + scale * product).to(weight.dtype)


def merge_lora(
    out: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float = 1.0,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Write W + s (B A) into `out`. Not differentiable: for frozen use.

    Args:
        out: like weight, of any strides; overwritten. It must not overlap the weight, which a
            later merge of another expert starts from again.
        weight: (out, in), or (out, in, k, k) of a convolution, of any strides.
        a: (r, in), or (r k, in k).
        b: (out, r), or (out k, r k).
        scale: s.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        `out`.

    Raises:
        ValueError: if shapes do not fit, out is the weight, or the backend cannot run here.
    """
    _check(out, weight, a, b)
    with torch.no_grad():
        if uses_op(backend, weight):
            merge_lora_op(out, weight, a, b, float(scale), backend == "triton")
        else:
            _merge(out, weight, a, b, scale)
    return out


@torch.library.custom_op("ppap_kernels::merge_lora", mutates_args={"out"})
def merge_lora_op(
    out: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, force: bool
) -> None:
    """`merge_lora` as an operator; `force` takes Triton against the table."""
    shape = {"rows": b.shape[0], "cols": a.shape[1], "rank": a.shape[0]}
    entry = select("merge_lora", weight, shape, force)
    if entry is None:
        _merge(out, weight, a, b, scale)
        return
    from ppap_kernels import triton_elementwise

    triton_elementwise.merge_lora(weight, a, b, out, scale, entry.config)


@merge_lora_op.register_fake
def _(out: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, force: bool) -> None:
    return None


def _merge(out: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """One addmm into the buffer where the layouts allow, else through a temporary."""
    plain = weight.is_contiguous() and out.is_contiguous()
    if plain and weight.dtype == a.dtype == b.dtype == out.dtype:
        shape = (b.shape[0], a.shape[1])
        torch.addmm(weight.view(shape), b, a, alpha=scale, out=out.view(shape))
    else:
        out.copy_(merge_lora_reference(weight, a, b, scale))


def _check(out: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> None:
    if out is weight:
        raise ValueError("out is the weight itself: the base weight would be lost")
    if out.shape != weight.shape or out.dtype != weight.dtype:
        raise ValueError(
            f"out must be like the weight, {tuple(weight.shape)} {weight.dtype}, "
            f"got {tuple(out.shape)} {out.dtype}"
        )
    kernel = weight.shape[-1] if weight.ndim == 4 else 1
    square = weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2] == weight.shape[3])
    rows, cols = weight.shape[0] * kernel, weight.shape[1] * kernel
    low_rank = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] and a.dtype == b.dtype
    if not square or not low_rank or a.shape[1] != cols or b.shape[0] != rows:
        raise ValueError(
            f"a weight {tuple(weight.shape)} needs a (r, {cols}) and b ({rows}, r) of one dtype, "
            f"and square kernels; got a {tuple(a.shape)} {a.dtype}, b {tuple(b.shape)} {b.dtype}"
        )
