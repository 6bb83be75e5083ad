"""Weights with their adapter merged in, written into a buffer that already exists.

W + s (B A), computed once per change of expert and not once per call. A buffer that stays where
it is keeps compiled code and captured graphs valid. A convolution's weight (out, in, k, k) takes
either form of adapter, since in both the product's elements are in the weight's order: loralib's
(microsoft/LoRA, ConvLoRA), A (r k, in k), B (out k, r k), and peft's, which `lora_conv` runs
unmerged, A (r, in, k, k), B (out, r). All of a bank's experts can be merged in one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, select, uses_op

__all__ = ["merge_lora", "merge_lora_op", "merge_lora_reference", "mergeable"]


def merge_lora_reference(weight: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """W + s (B A) in plain torch, as a new tensor. See `merge_lora`."""
    a, b = _matrices(weight, a, b)
    product = (b @ a).reshape(*a.shape[:-2], *weight.shape)
    return (weight + scale * product).to(weight.dtype)


def mergeable(weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether `merge_lora` takes factors of such shapes for a weight.

    Those of a linear layer, or of a two-dimensional convolution without groups whose kernel is
    square.
    """
    return _fits(weight, *_matrices(weight, a, b))


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
        out: like weight, or (E, ...) of such, of any strides; overwritten. It must not overlap
            the weight, which a later merge of another expert starts from again.
        weight: (out, in), or (out, in, k, k) of a convolution, of any strides.
        a: (r, in); (r k, in k) or (r, in, k, k) for a convolution; with a leading E where out
            has it.
        b: (out, r); (out k, r k) or (out, r), also as (out, r, 1, 1); with a leading E likewise.
        scale: s.
        backend: "auto", "torch" or "triton"; see `ppap_kernels.dispatch`.

    Returns:
        `out`.

    Raises:
        ValueError: if shapes do not fit, out overlaps the weight, or the backend cannot run here.
    """
    a, b = _matrices(weight, a, b)
    _check(out, weight, a, b)
    with torch.no_grad():
        if uses_op(backend, weight, "merge_lora"):
            merge_lora_op(out, weight, a, b, float(scale), backend == "triton")
        else:
            _merge(out, weight, a, b, scale)
    return out


@torch.library.custom_op("ppap_kernels::merge_lora", mutates_args={"out"})
def merge_lora_op(
    out: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, force: bool
) -> None:
    """`merge_lora` as an operator on matrices; `force` takes Triton against the table."""
    shape = {"rows": b.shape[-2], "cols": a.shape[-1], "rank": a.shape[-2]}
    entry = select("merge_lora", weight, shape, force)
    if entry is None:
        _merge(out, weight, a, b, scale)
        return
    from ppap_kernels import triton_elementwise

    triton_elementwise.merge_lora(weight, a, b, out, scale, entry.config)


@merge_lora_op.register_fake
def _(out: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, force: bool) -> None:
    return None


def _matrices(weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Peft's form of a convolution's adapter as matrices (..., r, in k k) and (..., out, r)."""
    if weight.ndim == 4 and a.ndim >= 4:
        b = b.flatten(-3) if b.ndim == a.ndim else b
        a = a.flatten(-3)
    return a, b


def _merge(out: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """One product into the buffer where the layouts allow, else through a temporary."""
    plain = weight.is_contiguous() and out.is_contiguous()
    if plain and weight.dtype == a.dtype == b.dtype == out.dtype:
        shape = (b.shape[-2], a.shape[-1])
        base = weight.view(shape)
        if a.ndim == 2:
            torch.addmm(base, b, a, alpha=scale, out=out.view(shape))
        else:
            torch.baddbmm(base[None], b, a, alpha=scale, out=out.view(len(a), *shape))
    else:
        out.copy_(merge_lora_reference(weight, a, b, scale))


def _check(out: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> None:
    if _overlap(out, weight):
        raise ValueError("out is the weight itself, or overlaps it: the base weight would be lost")
    experts = tuple(a.shape[:-2])
    if out.shape != (*experts, *weight.shape) or out.dtype != weight.dtype:
        raise ValueError(
            f"out must be like the weight, {(*experts, *weight.shape)} {weight.dtype}, "
            f"got {tuple(out.shape)} {out.dtype}"
        )
    if not _fits(weight, a, b):
        kernel = weight.shape[-1] if weight.ndim == 4 else 1
        n_out, n_in = weight.shape[:2]
        rows, cols = n_out * kernel, n_in * kernel
        peft = f", or a (r, {n_in}, {kernel}, {kernel}) and b ({n_out}, r)" if kernel > 1 else ""
        raise ValueError(
            f"a weight {tuple(weight.shape)} needs a (r, {cols}) and b ({rows}, r){peft}, of one "
            "dtype, each with a leading E for E experts, and square kernels; "
            f"got a {tuple(a.shape)} {a.dtype}, b {tuple(b.shape)} {b.dtype}"
        )


def _overlap(out: Tensor, weight: Tensor) -> bool:
    """Whether one lies where the other does, as a tensor and its ``.data`` or a part of it do.

    The compiler, which cannot ask for that, is told of the tensor itself alone.
    """
    if torch.compiler.is_compiling() or out is weight:
        return out is weight
    if out.untyped_storage()._cdata != weight.untyped_storage()._cdata:
        return False
    places = [
        (t.storage_offset(), sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))
        for t in (out, weight)
    ]
    (first, extent), (second, other) = places
    return bool(first <= second + other and second <= first + extent)


def _fits(weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether matrices a (..., r, C) and b (..., R, r) give a product like the weight."""
    kernel = weight.shape[-1] if weight.ndim == 4 else 1
    square = weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2] == kernel)
    low_rank = 2 <= a.ndim == b.ndim <= 3 and a.shape[:-2] == b.shape[:-2] and a.dtype == b.dtype
    if not square or not low_rank or a.shape[-2] != b.shape[-1]:
        return False
    n_out, n_in = weight.shape[:2]
    forms = [(n_out, n_in * kernel * kernel), (n_out * kernel, n_in * kernel)]
    return (b.shape[-2], a.shape[-1]) in forms
