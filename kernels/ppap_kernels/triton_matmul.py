"""Triton kernels for a matrix product with a low-rank side path, for one adapter or for many.

One kernel serves every direction. With P = Wᵀ, Q = Aᵀ, R = Bᵀ it is the forward pass of a LoRA
layer; with P = W, Q = B, R = A it is the gradient in the input: transposes are strides. The tile
of x that the K-loop loads feeds both products, so x is read once per column of tiles and no
intermediate of M rows but the (M, r) one is written.

Grouped form: rows are taken in the order of their expert, in tiles that never straddle two of
them (the layout of vLLM's `moe_align_block_size`), so one launch serves all experts.
"""
# Kernel bodies are Triton's language, which carries no types for mypy to check.
# ruff: noqa: ANN001, ANN202, N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "Plan",
    "grouped_low_rank_matmul",
    "grouped_outer",
    "low_rank_matmul",
    "plan_rows",
    "precision",
    "rank_block",
]


@triton.jit
def low_rank_matmul_kernel(
    x, p, q, r, bias, y, h, order, tile_group, tile_first, tile_end,
    m, n, k, rank, tokens, scale,
    x_m, x_k, p_k, p_n, q_e, q_k, q_r, r_e, r_r, r_n,
    HAS_BIAS: tl.constexpr, GROUPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Give y = x p + scale (x q) r + bias and h = x q; grouped: q and r of each row's expert."""
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
        sample = tl.load(order + position // tokens, mask=in_m, other=0)
        rows = sample.to(tl.int64) * tokens + position % tokens
        rank_here = tl.where(group < 0, 0, rank)
        q += tl.maximum(group, 0).to(tl.int64) * q_e
        r += tl.maximum(group, 0).to(tl.int64) * r_e
    else:
        rows = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        in_m = rows < m
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = cols < n
    ranks = tl.arange(0, BLOCK_R)
    in_r = ranks < rank_here

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    low = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for start in range(0, k, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        in_k = ks < k
        x_at = x + rows[:, None] * x_m + ks[None, :] * x_k
        x_tile = tl.load(x_at, mask=in_m[:, None] & in_k[None, :], other=0.0)
        p_at = p + ks[:, None].to(tl.int64) * p_k + cols[None, :].to(tl.int64) * p_n
        p_tile = tl.load(p_at, mask=in_k[:, None] & in_n[None, :], other=0.0)
        q_at = q + ks[:, None] * q_k + ranks[None, :] * q_r
        q_tile = tl.load(q_at, mask=in_k[:, None] & in_r[None, :], other=0.0)
        acc = tl.dot(x_tile, p_tile, acc, input_precision=PRECISION)
        low = tl.dot(x_tile, q_tile, low, input_precision=PRECISION)

    if tl.program_id(1) == 0:
        h_at = h + rows[:, None] * rank + ranks[None, :]
        h_mask = in_m[:, None] & (ranks < rank)[None, :]
        tl.store(h_at, low.to(h.dtype.element_ty), mask=h_mask)
    r_at = r + ranks[:, None] * r_r + cols[None, :] * r_n
    r_tile = tl.load(r_at, mask=in_r[:, None] & in_n[None, :], other=0.0)
    low_tile = (low * scale).to(r_tile.dtype)
    acc = tl.dot(low_tile, r_tile, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=in_n, other=0.0).to(tl.float32)[None, :]
    y_at = y + rows[:, None] * n + cols[None, :]
    tl.store(y_at, acc.to(y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit
def grouped_outer_kernel(
    u, v, out, order, group_first, group_end,
    n_u, n_v, tokens, scale, u_m, u_c, v_m, v_c,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Give out[e] = scale * sum of u_rowᵀ v_row over the rows of expert e; 0 without rows."""
    expert = tl.program_id(0)
    us = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    vs = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    first = tl.load(group_first + expert)
    end = tl.load(group_end + expert)
    acc = tl.zeros((BLOCK_U, BLOCK_V), tl.float32)
    for start in range(first, end, BLOCK_M):
        position = start + tl.arange(0, BLOCK_M)
        in_m = position < end
        sample = tl.load(order + position // tokens, mask=in_m, other=0)
        rows = sample.to(tl.int64) * tokens + position % tokens
        u_at = u + us[:, None] * u_c + rows[None, :] * u_m
        u_tile = tl.load(u_at, mask=(us < n_u)[:, None] & in_m[None, :], other=0.0)
        v_at = v + rows[:, None] * v_m + vs[None, :] * v_c
        v_tile = tl.load(v_at, mask=in_m[:, None] & (vs < n_v)[None, :], other=0.0)
        acc = tl.dot(u_tile, v_tile, acc, input_precision=PRECISION)
    out_at = out + expert.to(tl.int64) * n_u * n_v + us[:, None] * n_v + vs[None, :]
    mask = (us < n_u)[:, None] & (vs < n_v)[None, :]
    tl.store(out_at, (acc * scale).to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Plan:
    """Where each expert's rows are, all int32 on the device of the index.

    Attributes:
        order: (B,) samples in the order of their expert, -1 first.
        group_first, group_end: (E,) range of sorted rows of each expert.
        tile_group, tile_first, tile_end: (tiles,) expert and range of sorted rows of each tile
            of `block` rows; a tile that is not needed has first >= end.
    """

    order: Tensor
    group_first: Tensor
    group_end: Tensor
    tile_group: Tensor
    tile_first: Tensor
    tile_end: Tensor


def plan_rows(index: Tensor, experts: int, tokens: int, block: int) -> Plan:
    """Sort samples by expert and cut each expert's rows into tiles, without a synchronisation.

    Args:
        index: (B,) integer expert of each sample, -1 for none.
        experts: number of experts E.
        tokens: rows per sample.
        block: rows per tile.
    """
    groups = torch.arange(-1, experts, device=index.device)
    counts = (index[None, :] == groups[:, None]).sum(1) * tokens
    ends = counts.cumsum(0)
    firsts = ends - counts
    tiles = (counts + block - 1) // block
    tile_ends = tiles.cumsum(0)
    bound = triton.cdiv(len(index) * tokens, block) + experts + 1
    tile = torch.arange(bound, device=index.device)
    group = torch.searchsorted(tile_ends, tile, right=True).clamp(max=experts)
    first = firsts[group] + (tile - (tile_ends - tiles)[group]) * block
    return Plan(
        order=index.argsort(stable=True).int(),
        group_first=firsts[1:].int().contiguous(),
        group_end=ends[1:].int().contiguous(),
        tile_group=(group - 1).int(),
        tile_first=first.int(),
        tile_end=ends[group].int(),
    )


def low_rank_matmul(
    x: Tensor, p: Tensor, q: Tensor, r: Tensor, bias: Tensor | None, scale: float,
    config: Mapping[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch for one adapter: x (M, K), p (K, N), q (K, r), r (r, N) -> y (M, N), h (M, r)."""
    m, n, rank = x.shape[0], p.shape[1], q.shape[1]
    y, h = x.new_empty(m, n), x.new_empty(m, rank)
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(m, config["BLOCK_M"]), triton.cdiv(n, config["BLOCK_N"]))
        low_rank_matmul_kernel[grid](
            x, p, q, r, p if bias is None else bias.contiguous(), y, h, x, x, x, x,
            m, n, x.shape[1], rank, 1, scale, *x.stride(), *p.stride(),
            0, *q.stride(), 0, *r.stride(),
            HAS_BIAS=bias is not None, GROUPED=False, PRECISION=precision(x),
            BLOCK_R=rank_block(rank), **config,
        )  # fmt: skip
    return y, h


def grouped_low_rank_matmul(
    x: Tensor, p: Tensor, q: Tensor, r: Tensor, bias: Tensor | None, index: Tensor,
    scale: float, config: Mapping[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch for all experts: x (B, T, K), q (E, K, r), r (E, r, N) -> y (B, T, N), h (B, T, r)."""
    batch, tokens, k = x.shape
    n, experts, rank = p.shape[1], q.shape[0], q.shape[2]
    rows = x.reshape(batch * tokens, k)
    y, h = x.new_empty(batch, tokens, n), x.new_empty(batch, tokens, rank)
    with torch.cuda.device_of(x):
        plan = plan_rows(index, experts, tokens, config["BLOCK_M"])
        grid = (len(plan.tile_group), triton.cdiv(n, config["BLOCK_N"]))
        low_rank_matmul_kernel[grid](
            rows, p, q, r, p if bias is None else bias.contiguous(), y, h,
            plan.order, plan.tile_group, plan.tile_first, plan.tile_end,
            len(rows), n, k, rank, tokens, scale, *rows.stride(), *p.stride(),
            *q.stride(), *r.stride(),
            HAS_BIAS=bias is not None, GROUPED=True, PRECISION=precision(x),
            BLOCK_R=rank_block(rank), **config,
        )  # fmt: skip
    return y, h


def grouped_outer(
    u: Tensor, v: Tensor, index: Tensor, experts: int, scale: float, config: Mapping[str, int]
) -> Tensor:
    """Launch for all experts: u (B, T, U), v (B, T, V) -> (E, U, V)."""
    batch, tokens, n_u = u.shape
    n_v = v.shape[2]
    out = u.new_empty(experts, n_u, n_v)
    with torch.cuda.device_of(u):
        plan = plan_rows(index, experts, tokens, config["BLOCK_M"])
        us, vs = u.reshape(batch * tokens, n_u), v.reshape(batch * tokens, n_v)
        launch = dict(config)
        launch["BLOCK_U"] = min(launch["BLOCK_U"], rank_block(n_u))
        launch["BLOCK_V"] = min(launch["BLOCK_V"], rank_block(n_v))
        grid = (experts, triton.cdiv(n_u, launch["BLOCK_U"]), triton.cdiv(n_v, launch["BLOCK_V"]))
        grouped_outer_kernel[grid](
            us, vs, out, plan.order, plan.group_first, plan.group_end,
            n_u, n_v, tokens, scale, *us.stride(), *vs.stride(),
            PRECISION=precision(u), **launch,
        )  # fmt: skip
    return out


def rank_block(rank: int) -> int:
    """The tile that holds `rank` columns: a power of two, at least tl.dot's smallest side."""
    return int(max(16, triton.next_power_of_2(rank)))


def precision(x: Tensor) -> str:
    """float32 products are as PyTorch's on a GPU; 16-bit ones have no choice.

    The older ``torch.get_float32_matmul_precision`` raises where a program uses this newer switch.
    """
    whole = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "ieee" if x.dtype == torch.float32 and whole else "tf32"
