"""LoRA of several experts on a linear layer, and the products behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import ppap_kernels as kernels
from ppap_kernels.dispatch import Entry
from ppap_kernels.grouped_lora_linear import grouped_low_rank_matmul_op, grouped_outer_op
from ppap_kernels.operations.description import (
    DTYPES,
    EXPERTS,
    PASSES,
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
from ppap_kernels.operations.lora_linear import (
    CANDIDATES,
    TUNED_RANK,
    product_case,
    product_traffic,
)
from ppap_kernels.operations.peft_layer import peft_layer

__all__ = ["OUTER", "PRODUCT", "problem"]

OUTER_CANDIDATES = {
    "BLOCK_M": (32, 64), "BLOCK_U": (32, 64, 128), "BLOCK_V": (32, 64, 128),
    "num_warps": (4, 8), "num_stages": (2, 3),
}  # fmt: skip


def problem(batch: int, tokens: int, inner: int, outer: int, rank: int, gpu: bool) -> Problem:
    """(batch, tokens, inner) to outer, each sample by its own expert."""
    experts = EXPERTS
    numbers = torch.arange(batch) * 7 % experts

    def traffic(size: int) -> Traffic:
        rows = batch * tokens
        return product_traffic(rows, outer, inner, rank, experts, size, True, rank, outer)

    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = normal(
            dtype, on, x=(batch, tokens, inner), w=(outer, inner), a=(experts, rank, inner),
            b=(experts, outer, rank), bias=(outer,),
        )  # fmt: skip
        return found | {"index": numbers.to(on)}

    def loop(t: Tensors) -> Tensor:
        found = F.linear(t["x"], t["w"], t["bias"])
        parts = []
        for number in range(experts):
            rows = (numbers == number).nonzero()[:, 0].to(t["x"].device)
            low = F.linear(F.linear(t["x"][rows], t["a"][number]), t["b"][number])
            parts.append((rows, found[rows] + 0.5 * low))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([part for _, part in parts])[order]

    names = [str(number) for number in numbers.tolist()]

    def with_peft(t: Tensors) -> Tensor:
        return peft_layer(t)(t["x"], adapter_names=names)  # type: ignore[no-any-return]

    def each(t: Tensors) -> Tensor:
        """A pass of its own for every expert, base included."""
        parts, order = [], []
        for number in range(experts):
            rows = (numbers == number).nonzero()[:, 0].to(t["x"].device)
            merged = t["w"] + 0.5 * t["b"][number] @ t["a"][number]
            parts.append(F.linear(t["x"][rows], merged, t["bias"]))
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    return Problem(
        "grouped_lora_linear",
        f"{batch}x{tokens}x{inner}->{outer}, r={rank}, {experts} experts",
        make,
        loop,
        (
            *ours(
                lambda t, backend: kernels.grouped_lora_linear(
                    t["x"], t["w"], t["a"], t["b"], t["index"], t["bias"], 0.5, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", loop),
            Way("torch, merged per expert", each),
            Way("peft, adapter_names", with_peft, passes=PASSES[:2]),
            *compiled(loop, gpu),
            Way("merged (floor)", lambda t: F.linear(t["x"], t["w"], t["bias"]), comparable=False),
        ),
        ("a", "b"),
        lambda size: traffic(size).minimum,
        traffic(1).needed,
    )


def _outer(entry: Entry, dtype: str, rank: int, of_a: bool) -> Case:
    from ppap_kernels import triton_matmul

    m, width = entry.shape["m"], entry.shape["u"]
    n_u, n_v = (width, rank) if of_a else (rank, width)
    pointers = dict.fromkeys(("u", "v", "out"), dtype)
    pointers |= dict.fromkeys(("order", "group_first", "group_end"), "i32")
    blocks = {
        "BLOCK_U": min(entry.config["BLOCK_U"], triton_matmul.rank_block(n_u)),
        "BLOCK_V": min(entry.config["BLOCK_V"], triton_matmul.rank_block(n_v)),
    }
    constants = {"PRECISION": "tf32", **blocks}
    source = source_of(
        triton_matmul.grouped_outer_kernel, entry, pointers, constants, {"u_c", "v_c"}, {"tokens"}
    )
    size = DTYPES[dtype]
    minimum = size * (m * (n_u + n_v) + EXPERTS * n_u * n_v)
    traffic = Traffic(
        bytes=minimum,
        minimum=minimum,
        unfused=minimum + size * 2 * m * (n_u + n_v),
        flops=2 * m * -(-n_u // blocks["BLOCK_U"]) * blocks["BLOCK_U"]
        * -(-n_v // blocks["BLOCK_V"]) * blocks["BLOCK_V"],
        needed=2 * m * n_u * n_v,
    )  # fmt: skip
    name = "grouped_lora_linear " + ("dA" if of_a else "dB")
    return Case(name, f"m={m} width={width} r={rank}", dtype, source, traffic)


def _cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    yield product_case(entry, dtype, rank, grouped=True, backward=False)
    yield product_case(entry, dtype, rank, grouped=True, backward=True)


def _outer_cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    yield _outer(entry, dtype, rank, of_a=True)
    yield _outer(entry, dtype, rank, of_a=False)


def _launches(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Launches:
    """The forward product of 40 samples."""
    from ppap_kernels import triton_matmul

    draw = draws(dtype, device)
    m, n, k = (shape[d] for d in ("m", "n", "k"))
    tokens = max(1, m // 40)
    x, p = draw(40, tokens, k), draw(n, k).t()
    q, r = draw(EXPERTS, k, TUNED_RANK), draw(EXPERTS, TUNED_RANK, n)
    index = (torch.arange(40) * 7 % EXPERTS).to(device)
    return Launches(
        lambda config: triton_matmul.grouped_low_rank_matmul(x, p, q, r, None, index, 0.5, config)[
            0
        ],
        lambda: torch.baddbmm(x @ p, torch.bmm(x, q[index]), r[index], alpha=0.5),
        lambda: grouped_low_rank_matmul_op(x, p, q, r, None, index, 0.5, True)[0],
    )


def _outer_launches(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Launches:
    """The adapters' gradients of 40 samples."""
    from ppap_kernels import triton_matmul

    draw = draws(dtype, device)
    tokens = max(1, shape["m"] // 40)
    u, v = draw(40, tokens, shape["u"]), draw(40, tokens, shape["v"])
    index = (torch.arange(40) * 7 % EXPERTS).to(device)
    own = index[None] == torch.arange(EXPERTS, device=device)[:, None]
    return Launches(
        lambda config: triton_matmul.grouped_outer(u, v, index, EXPERTS, 1.0, config),
        lambda: torch.einsum("eb,btu,btv->euv", own.to(dtype), u, v),
        lambda: grouped_outer_op(u, v, index, EXPERTS, 1.0, True),
    )


PRODUCT = Kernel("grouped_low_rank_matmul", _cases, candidates=CANDIDATES, launches=_launches)
OUTER = Kernel("grouped_outer", _outer_cases, candidates=OUTER_CANDIDATES, launches=_outer_launches)
