"""Every operation, described once, for whoever tunes, audits or times it.

A file for each holds its inputs at a size, its mathematics in plain torch, the rival ways of doing
it, the bytes and operations that it takes, and its kernels: what is compiled ahead of time and
what tuning launches. Traffic counts bytes to and from device memory if every operand is read once
(tiles that share an operand find it in the cache) and every result written once; `unfused` is the
eager sequence of torch operations for the same result, each reading its inputs and writing its
output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ppap_kernels.dispatch import table
from ppap_kernels.operations import (
    grouped_lora_linear,
    guided_step,
    lora_conv,
    lora_linear,
    merge_lora,
    transfer_loss,
)
from ppap_kernels.operations.description import (
    DTYPES,
    PASSES,
    Case,
    Kernel,
    Problem,
    Traffic,
    Way,
)

__all__ = [
    "DTYPES",
    "KERNELS",
    "PASSES",
    "Case",
    "Kernel",
    "Problem",
    "Traffic",
    "Way",
    "cases",
    "problems",
]

KERNELS = (
    lora_linear.KERNEL,
    lora_conv.KERNEL,
    grouped_lora_linear.PRODUCT,
    lora_conv.GROUPED,
    grouped_lora_linear.OUTER,
    merge_lora.KERNEL,
    guided_step.DDIM,
    guided_step.DDPM,
    transfer_loss.KERNEL,
)
"""In the order of the audit's tables."""


def problems(on: torch.device) -> Iterator[Problem]:
    """Sizes that guidance with experts runs on a GPU; small ones on a CPU, to rehearse."""
    gpu = on.type == "cuda"
    linear = (
        [(64 * 197, 384, 1152, 16), (64 * 197, 384, 384, 8), (64 * 197, 1536, 384, 16),
         (16 * 257, 1024, 4096, 16), (2048, 4096, 4096, 64)]
        if gpu else [(200, 48, 144, 4), (500, 384, 384, 16)]
    )  # fmt: skip
    for rows, inner, outer, rank in linear:
        yield lora_linear.problem(rows, inner, outer, rank, gpu)
    for batch, tokens, inner, outer, rank in (
        [(40, 197, 384, 1152, 16), (64, 257, 1024, 1024, 8)] if gpu else [(10, 17, 48, 144, 4)]
    ):
        yield grouped_lora_linear.problem(batch, tokens, inner, outer, rank, gpu)
    for batch, channels, side, rank in (
        [(32, 64, 56, 16), (32, 256, 14, 16)] if gpu else [(4, 16, 8, 4)]
    ):
        yield lora_conv.problem(batch, channels, side, rank, gpu)
    for width, kernel, rank in [(1024, 1, 16), (256, 3, 16)] if gpu else [(48, 1, 4), (16, 3, 4)]:
        yield merge_lora.problem(width, kernel, rank, gpu)
    yield guided_step.ddim_problem(8 if gpu else 2, 3, 256 if gpu else 32, gpu)
    yield guided_step.ddpm_problem(8 if gpu else 2, 3, 256 if gpu else 32, gpu)
    for rows, classes in [(256, 1000), (64, 8192)] if gpu else [(40, 10)]:
        yield transfer_loss.problem(rows, classes, gpu)


def cases(
    dtypes: tuple[str, ...] = tuple(DTYPES), ranks: tuple[int, ...] = (16, 64)
) -> Iterator[Case]:
    """What the audit compiles: every shipped configuration in each element type and rank."""
    entries = table("default")
    for dtype in dtypes:
        for rank in ranks:
            for kernel in (kernel for kernel in KERNELS if kernel.ranked):
                for entry in entries[kernel.name]:
                    yield from kernel.cases(entry, dtype, rank)
        for kernel in (kernel for kernel in KERNELS if not kernel.ranked):
            for entry in entries[kernel.name]:
                yield from kernel.cases(entry, dtype, 0)
