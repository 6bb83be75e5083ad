"""Shapes of a convolution: its geometry, channels-last views of images, and what must fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Geometry",
    "Pair",
    "as_pair",
    "check_index",
    "check_shapes",
    "dense",
    "images_of",
    "output_size",
    "pixels_of",
    "pointwise",
    "seen_pixels",
]

Pair = int | Sequence[int]
"""Of height and width; one number stands for both."""
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Stride, padding and dilation, each of height and width."""


def as_pair(about: Pair) -> tuple[int, int]:
    """Height's and width's."""
    first, second = (about, about) if isinstance(about, int) else about
    return first, second


def pixels_of(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C); a view of channels-last images."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def images_of(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H W, C) as (B, C, H, W), channels-last."""
    return pixels.view(len(pixels), *size, pixels.shape[-1]).permute(0, 3, 1, 2)


def dense(images: Tensor) -> Tensor:
    """(B, C, H, W) laid out channels-last."""
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def pointwise(weight: Tensor, geometry: Geometry) -> bool:
    """Whether a convolution is a product over channels, pixel by pixel."""
    return weight.shape[2:] == (1, 1) and not any(geometry[1])


def seen_pixels(x: Tensor, geometry: Geometry) -> Tensor:
    """(B, H', W', in): the pixels that a 1 x 1 convolution sees."""
    (height, width), *_ = geometry
    return x[:, :, ::height, ::width].permute(0, 2, 3, 1)


def output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> list[int]:
    """Height and width of the output."""
    sides = zip(x.shape[2:], weight.shape[2:], *geometry, strict=True)
    return [(n + 2 * pad - step * (k - 1) - 1) // stride + 1 for n, k, stride, pad, step in sides]


def check_shapes(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, groups: int = 1
) -> None:
    """Arguments of a convolution with adapters: a (E, r, in, k, k), b (E, out, r / groups).

    Raises:
        ValueError: if shapes do not fit each other.
        TypeError: if dtypes differ.
    """
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


def check_index(x: Tensor, index: Tensor) -> None:
    """One expert per sample.

    Raises:
        ValueError: for another shape.
        TypeError: if the index is not of integers.
    """
    if index.shape != x.shape[:1]:
        raise ValueError(f"index must be ({len(x)},), one per sample, got {tuple(index.shape)}")
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"index must be of integers, got {index.dtype}")
