"""LoRA on a convolution, of one expert or several, and the kernel behind it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

import ppap_kernels as kernels
from ppap_kernels.dispatch import Entry
from ppap_kernels.operations.description import (
    DTYPES,
    EXPERTS,
    Case,
    Kernel,
    Problem,
    Tensors,
    Traffic,
    Way,
    compiled,
    normal,
    ours,
    source_of,
)

__all__ = ["GROUPED", "KERNEL", "problem"]


def problem(batch: int, channels: int, side: int, rank: int, gpu: bool) -> Problem:
    """3 x 3 over square images, as many channels out as in."""

    def traffic(size: int) -> Traffic:
        shape = (batch * side * side, channels, channels, rank)
        return conv_traffic(*shape, 1, size, False, rank, channels)

    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = normal(
            dtype, on, x=(batch, channels, side, side), w=(channels, channels, 3, 3),
            a=(rank, channels, 3, 3), b=(channels, rank, 1, 1),
        )  # fmt: skip
        return {k: v.contiguous(memory_format=torch.channels_last) for k, v in found.items()}

    def eager(t: Tensors) -> Tensor:
        base = F.conv2d(t["x"], t["w"], padding=1)
        return base + 0.5 * F.conv2d(F.conv2d(t["x"], t["a"], padding=1), t["b"])

    return Problem(
        "lora_conv",
        f"{batch}x{channels}x{side}x{side}, 3x3, r={rank}",
        make,
        eager,
        (
            *ours(
                lambda t, backend: kernels.lora_conv(
                    t["x"], t["w"], t["a"], t["b"], None, 0.5, stride=1, padding=1, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", eager),
            *compiled(eager, gpu),
            Way("merged (floor)", lambda t: F.conv2d(t["x"], t["w"], padding=1), comparable=False),
        ),
        ("a", "b"),
        lambda size: traffic(size).minimum,
        traffic(1).needed,
    )


def _conv(entry: Entry, dtype: str, rank: int, grouped: bool, backward: bool) -> Case:
    """3 x 3, stride 1."""
    from ppap_kernels import triton_conv, triton_matmul

    m, n, k = (entry.shape[d] for d in ("m", "n", "k"))
    pointers = dict.fromkeys(("x", "g", "w", "a", "b", "bias", "y", "h"), dtype)
    pointers |= dict.fromkeys(("order", "tile_group", "tile_first", "tile_end"), "i32")
    # Weights have their taps outermost and their in-channels innermost.
    ones = {"mul_h", "mul_w", "b_r"} | ({"w_n", "a_c"} if backward else {"w_k", "a_c"})
    ones |= set() if backward else {"step_h", "step_w"}
    padded = triton_matmul.rank_block(rank)
    constants = {
        "HAS_BIAS": not backward, "GROUPED": grouped, "TRANSPOSED": backward,
        "PRECISION": "tf32", "BLOCK_R": padded,
    }  # fmt: skip
    unaligned = {"pixels", "y_width", "height", "width", "taps", "taps_w", "step_h", "step_w"}
    unaligned |= {"m", "first_h", "first_w"} | (set() if grouped else {"a_e", "b_e"})
    source = source_of(
        triton_conv.low_rank_conv_kernel, entry, pointers, constants, ones, unaligned - ones
    )
    traffic = conv_traffic(
        m, n, k, rank, EXPERTS if grouped else 1, DTYPES[dtype], backward, padded,
        entry.config["BLOCK_N"],
    )  # fmt: skip
    name = ("grouped_" if grouped else "") + "lora_conv " + ("dx" if backward else "forward")
    return Case(name, f"m={m} n={n} k={k} 3x3 r={rank}", dtype, source, traffic)


def conv_traffic(
    m: int, n: int, k: int, rank: int, adapters: int, size: int, backward: bool,
    padded: int, block_n: int,
) -> Traffic:  # fmt: skip
    """Of m pixels with k channels to n, 3 x 3; arguments as for products."""
    low = m * rank
    # dx takes h's gradient as it is: its matmul from dy is in neither sequence.
    weights = 9 * n * k + adapters * rank * (9 * n if backward else 9 * k + n)
    minimum = size * (m * k + weights + m * n + (low if backward else 0))
    # Eager: a convolution down (all experts' at once and a mask), one up, a scaling, a sum.
    masked = adapters * low if adapters > 1 else 0
    down = 2 * masked if backward else m * k + (4 * masked if adapters > 1 else 2 * low)
    unfused = minimum + size * (down + (4 if adapters > 1 or backward else 6) * m * n)
    columns = -(-n // block_n)
    return Traffic(
        bytes=minimum + (0 if backward else size * low),
        minimum=minimum,
        unfused=unfused,
        flops=2 * m * (9 * n * k + padded * (9 * n if backward else 9 * k * columns + n)),
        needed=2 * m * (9 * n * k + rank * (9 * n if backward else 9 * k + n)),
    )


def _cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    yield _conv(entry, dtype, rank, grouped=False, backward=False)
    yield _conv(entry, dtype, rank, grouped=False, backward=True)


def _grouped_cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    yield _conv(entry, dtype, rank, grouped=True, backward=False)
    yield _conv(entry, dtype, rank, grouped=True, backward=True)


KERNEL = Kernel("low_rank_conv", _cases)
GROUPED = Kernel("grouped_low_rank_conv", _grouped_cases)
