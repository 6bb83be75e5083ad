"""LoRA on a linear layer, and the fused product behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import ppap_kernels as kernels
from ppap_kernels.dispatch import Entry
from ppap_kernels.lora_linear import low_rank_matmul_op
from ppap_kernels.operations.description import (
    DTYPES,
    EXPERTS,
    Case,
    Kernel,
    Launches,
    Problem,
    Tensors,
    Traffic,
    Way,
    compiled,
    draws,
    normal,
    ours,
    source_of,
)
from ppap_kernels.operations.peft_layer import peft_layer

__all__ = ["CANDIDATES", "KERNEL", "TUNED_RANK", "problem", "product_case", "product_traffic"]

CANDIDATES = {
    "BLOCK_M": (16, 32, 64, 128), "BLOCK_N": (32, 64, 128), "BLOCK_K": (32, 64),
    "num_warps": (4, 8), "num_stages": (2, 3, 4),
}  # fmt: skip
TUNED_RANK = 16


def problem(rows: int, inner: int, outer: int, rank: int, gpu: bool) -> Problem:
    """(rows, inner) to (rows, outer) with a bias."""

    def eager(t: Tensors) -> Tensor:
        return F.linear(t["x"], t["w"], t["bias"]) + 0.5 * F.linear(
            F.linear(t["x"], t["a"]), t["b"]
        )

    def with_peft(t: Tensors) -> Tensor:
        return peft_layer(t)(t["x"])  # type: ignore[no-any-return]

    def of_peft(t: Tensors) -> Tensors:
        layer = peft_layer(t)
        own = {"a": layer.lora_A["0"].weight, "b": layer.lora_B["0"].weight}
        return t | own

    return Problem(
        "lora_linear",
        f"{rows}x{inner}->{outer}, r={rank}",
        lambda dtype, on: normal(
            dtype, on, x=(rows, inner), w=(outer, inner), a=(rank, inner), b=(outer, rank),
            bias=(outer,),
        ),
        eager,
        (
            *ours(
                lambda t, backend: kernels.lora_linear(
                    t["x"], t["w"], t["a"], t["b"], t["bias"], 0.5, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", eager),
            *compiled(eager, gpu),
            Way("peft", with_peft, owns=of_peft),
            Way("merged (floor)", lambda t: F.linear(t["x"], t["w"], t["bias"]), comparable=False),
        ),
        ("a", "b"),
        lambda size: product_traffic(rows, outer, inner, rank, 1, size, False, rank, outer).minimum,
        product_traffic(rows, outer, inner, rank, 1, 1, False, rank, outer).needed,
    )  # fmt: skip


def product_case(entry: Entry, dtype: str, rank: int, grouped: bool, backward: bool) -> Case:
    """Forward or the gradient in x, of one adapter or of several."""
    from ppap_kernels import triton_matmul

    m, n, k = (entry.shape[d] for d in ("m", "n", "k"))
    pointers = dict.fromkeys(("x", "p", "q", "r", "bias", "y", "h"), dtype)
    pointers |= dict.fromkeys(("order", "tile_group", "tile_first", "tile_end"), "i32")
    # Forward P, Q and R are transposed views of contiguous matrices, backward they are not.
    ones = {"x_k", "p_n", "q_r", "r_n"} if backward else {"x_k", "p_k", "q_k", "r_r"}
    padded = triton_matmul.rank_block(rank)
    constants = {
        "HAS_BIAS": not backward, "GROUPED": grouped, "PRECISION": "tf32", "BLOCK_R": padded,
    }  # fmt: skip
    tokens = frozenset({"m", "tokens"} | (set() if grouped else {"q_e", "r_e"}))
    source = source_of(
        triton_matmul.low_rank_matmul_kernel, entry, pointers, constants, ones, tokens
    )
    traffic = product_traffic(
        m, n, k, rank, EXPERTS if grouped else 1, DTYPES[dtype], grouped, padded,
        entry.config["BLOCK_N"],
    )  # fmt: skip
    name = ("grouped_" if grouped else "") + "lora_linear " + ("dx" if backward else "forward")
    return Case(name, f"m={m} n={n} k={k} r={rank}", dtype, source, traffic)


def product_traffic(
    m: int, n: int, k: int, rank: int, adapters: int, size: int, grouped: bool,
    padded: int, block_n: int,
) -> Traffic:  # fmt: skip
    """Of (m, k) to (m, n) through rank: y = x W^T + (x A^T) B^T.

    Args:
        m: rows.
        n: columns.
        k: inner size.
        rank: of an adapter.
        adapters: how many.
        size: bytes of an element.
        grouped: whether rows are gathered by their adapter.
        padded: the rank as the kernel computes it.
        block_n: columns of a tile; each column of tiles computes x A^T anew.
    """
    weights = n * k + adapters * rank * (n + k)
    minimum = size * (m * k + weights + m * n)
    gathers = size * 2 * m * k if grouped else 0
    columns = -(-n // block_n)
    return Traffic(
        bytes=minimum + size * m * rank,
        minimum=minimum,
        unfused=minimum + size * (m * k + 2 * m * rank + 6 * m * n) + gathers,
        flops=2 * m * (n * k + padded * (n + k * columns)),
        needed=2 * m * (n * k + rank * (n + k)),
    )


def _cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    yield product_case(entry, dtype, rank, grouped=False, backward=False)
    yield product_case(entry, dtype, rank, grouped=False, backward=True)


def _launches(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Launches:
    """The forward product at the rank of the paper."""
    from ppap_kernels import triton_matmul

    draw = draws(dtype, device)
    m, n, k = (shape[d] for d in ("m", "n", "k"))
    x, p, q, r = (
        draw(m, k),
        draw(n, k).t(),
        draw(TUNED_RANK, k).t(),
        draw(n, TUNED_RANK).t(),
    )
    return Launches(
        lambda config: triton_matmul.low_rank_matmul(x, p, q, r, None, 0.5, config)[0],
        lambda: torch.addmm(x @ p, x @ q, r, alpha=0.5),
        lambda: low_rank_matmul_op(x, p, q, r, None, 0.5, True)[0],
    )


KERNEL = Kernel("low_rank_matmul", _cases, candidates=CANDIDATES, launches=_launches)
