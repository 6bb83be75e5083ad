"""Merging an adapter into a weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import ppap_kernels as kernels
from ppap_kernels.dispatch import Entry
from ppap_kernels.operations.description import (
    DTYPES,
    Case,
    Kernel,
    Problem,
    Tensors,
    Traffic,
    Way,
    normal,
    ours,
    source_of,
)

__all__ = ["KERNEL", "problem"]


def problem(width: int, kernel: int, rank: int, gpu: bool) -> Problem:
    """A square weight with its adapter, of a linear layer or a convolution."""
    shape = (width, width) if kernel == 1 else (width, width, kernel, kernel)
    side = width * kernel

    def eager(t: Tensors) -> Tensor:
        return t["w"] + 0.5 * (t["b"] @ t["a"]).view(t["w"].shape)

    return Problem(
        "merge_lora",
        f"{width}x{width}, {kernel}x{kernel}, r={rank}",
        lambda dtype, on: normal(
            dtype, on, w=shape, a=(rank * kernel, side), b=(side, rank * kernel)
        ),
        eager,
        (
            *ours(
                lambda t, backend: kernels.merge_lora(
                    torch.empty_like(t["w"]), t["w"], t["a"], t["b"], 0.5, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", eager),
        ),
        (),
        lambda size: merge_traffic(side, side, rank * kernel, size).minimum,
        merge_traffic(side, side, rank * kernel, 1).needed,
    )  # fmt: skip


def _merge(entry: Entry, dtype: str, rank: int, kernel: int) -> Case:
    from ppap_kernels import triton_elementwise

    rows, cols, low = entry.shape["rows"], entry.shape["cols"], rank * kernel
    pointers = dict.fromkeys(("weight", "a", "b", "out"), dtype)
    strides = {"w_w", "o_w"} if kernel > 1 else {"w_i", "o_i"}
    unaligned = {"w_h", "o_h", "w_i", "o_i", "o_e", "a_e", "b_e"}
    ones = {"a_c", "b_r"} | strides
    constants = {"PRECISION": "ieee" if dtype == "fp32" else "tf32", "KERNEL": kernel}
    source = source_of(
        triton_elementwise.merge_lora_kernel, entry, pointers, constants, ones, unaligned - ones
    )
    traffic = merge_traffic(rows, cols, low, DTYPES[dtype])
    form = "conv" if kernel > 1 else "linear"
    return Case(f"merge_lora {form}", f"{rows}x{cols} r={low}", dtype, source, traffic)


def merge_traffic(rows: int, cols: int, low: int, size: int) -> Traffic:
    """Of a (rows, cols) weight and factors of low columns and rows; size bytes an element."""
    minimum = size * (2 * rows * cols + low * (rows + cols))
    flops = 2 * rows * cols * low
    return Traffic(minimum, minimum, minimum + size * 4 * rows * cols, flops, flops)


def _cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    yield _merge(entry, dtype, rank, kernel=1)
    yield _merge(entry, dtype, rank, kernel=3)


KERNEL = Kernel("merge_lora", _cases)
