"""What the audit compiles: every shipped configuration at the shape it is meant for.

Traffic counts bytes to and from device memory if every operand is read once (tiles that share an
operand find it in the cache) and every result written once. `unfused` is the eager sequence of
torch operations for the same result, each reading its inputs and writing its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ppap_kernels import triton_conv as conv
from ppap_kernels import triton_elementwise as elementwise
from ppap_kernels import triton_matmul as matmul
from ppap_kernels.cubin import Source
from ppap_kernels.dispatch import Entry, table

__all__ = ["DTYPES", "Case", "Traffic", "cases"]

DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
EXPERTS = 5
ROWS = 256


@dataclass(frozen=True)
class Traffic:
    """Bytes and operations of a workload.

    Attributes:
        bytes: moved by the kernel.
        minimum: bytes of inputs and outputs.
        unfused: bytes of the eager sequence.
        flops: operations of the kernel, padding and recomputation included; 0 without a dot.
        needed: operations of the mathematics.
    """

    bytes: int
    minimum: int
    unfused: int
    flops: int = 0
    needed: int = 0


@dataclass(frozen=True)
class Case:
    """One compilation of one kernel and the workload that it is judged by."""

    name: str
    shape: str
    dtype: str
    source: Source
    traffic: Traffic


def cases(
    dtypes: tuple[str, ...] = tuple(DTYPES), ranks: tuple[int, ...] = (16, 64)
) -> Iterator[Case]:
    """Every shipped configuration in each element type, products at each rank."""
    entries = table("default")
    for dtype in dtypes:
        for rank in ranks:
            for grouped in (False, True):
                kernel = "grouped_low_rank_matmul" if grouped else "low_rank_matmul"
                for entry in entries[kernel]:
                    yield _product(entry, dtype, rank, grouped, backward=False)
                    yield _product(entry, dtype, rank, grouped, backward=True)
                for entry in entries[kernel.replace("matmul", "conv")]:
                    yield _conv(entry, dtype, rank, grouped, backward=False)
                    yield _conv(entry, dtype, rank, grouped, backward=True)
            for entry in entries["grouped_outer"]:
                yield _outer(entry, dtype, rank, of_a=True)
                yield _outer(entry, dtype, rank, of_a=False)
            for entry in entries["merge_lora"]:
                yield _merge(entry, dtype, rank, kernel=1)
                yield _merge(entry, dtype, rank, kernel=3)
        for entry in entries["guided_ddim_step"]:
            yield _ddim(entry, dtype)
        for entry in entries["guided_ddpm_step"]:
            yield _ddpm(entry, dtype, pixelwise=False)
            yield _ddpm(entry, dtype, pixelwise=True)
        for entry in entries["transfer_loss"]:
            yield _transfer(entry, dtype)


def _product(entry: Entry, dtype: str, rank: int, grouped: bool, backward: bool) -> Case:
    m, n, k = (entry.shape[d] for d in ("m", "n", "k"))
    pointers = dict.fromkeys(("x", "p", "q", "r", "bias", "y", "h"), dtype)
    pointers |= dict.fromkeys(("order", "tile_group", "tile_first", "tile_end"), "i32")
    # Forward P, Q and R are transposed views of contiguous matrices, backward they are not.
    ones = {"x_k", "p_n", "q_r", "r_n"} if backward else {"x_k", "p_k", "q_k", "r_r"}
    padded = matmul.rank_block(rank)
    constants = {
        "HAS_BIAS": not backward, "GROUPED": grouped, "PRECISION": "tf32", "BLOCK_R": padded,
    }  # fmt: skip
    tokens = frozenset({"m", "tokens"} | (set() if grouped else {"q_e", "r_e"}))
    source = _source(matmul.low_rank_matmul_kernel, entry, pointers, constants, ones, tokens)
    adapters = EXPERTS if grouped else 1
    size = DTYPES[dtype]
    weights = n * k + adapters * rank * (n + k)
    minimum = size * (m * k + weights + m * n)
    gathers = size * 2 * m * k if grouped else 0
    unfused = minimum + size * (m * k + 2 * m * rank + 6 * m * n) + gathers
    columns = -(-n // entry.config["BLOCK_N"])
    traffic = Traffic(
        bytes=minimum + size * m * rank,
        minimum=minimum,
        unfused=unfused,
        flops=2 * m * (n * k + padded * (n + k * columns)),
        needed=2 * m * (n * k + rank * (n + k)),
    )
    name = ("grouped_" if grouped else "") + "lora_linear " + ("dx" if backward else "forward")
    return Case(name, f"m={m} n={n} k={k} r={rank}", dtype, source, traffic)


def _conv(entry: Entry, dtype: str, rank: int, grouped: bool, backward: bool) -> Case:
    """3 x 3, stride 1."""
    m, n, k = (entry.shape[d] for d in ("m", "n", "k"))
    pointers = dict.fromkeys(("x", "g", "w", "a", "b", "bias", "y", "h"), dtype)
    pointers |= dict.fromkeys(("order", "tile_group", "tile_first", "tile_end"), "i32")
    # Weights have their taps outermost and their in-channels innermost.
    ones = {"mul_h", "mul_w", "b_r"} | ({"w_n", "a_c"} if backward else {"w_k", "a_c"})
    ones |= set() if backward else {"step_h", "step_w"}
    padded = matmul.rank_block(rank)
    constants = {
        "HAS_BIAS": not backward, "GROUPED": grouped, "TRANSPOSED": backward,
        "PRECISION": "tf32", "BLOCK_R": padded,
    }  # fmt: skip
    unaligned = {"pixels", "y_width", "height", "width", "taps", "taps_w", "step_h", "step_w"}
    unaligned |= {"m", "first_h", "first_w"} | (set() if grouped else {"a_e", "b_e"})
    source = _source(conv.low_rank_conv_kernel, entry, pointers, constants, ones, unaligned - ones)
    adapters, size = EXPERTS if grouped else 1, DTYPES[dtype]
    low = m * rank
    # dx takes h's gradient as it is: its matmul from dy is in neither sequence.
    weights = 9 * n * k + adapters * rank * (9 * n if backward else 9 * k + n)
    minimum = size * (m * k + weights + m * n + (low if backward else 0))
    # Eager: a convolution down (all experts' at once and a mask), one up, a scaling, a sum.
    masked = adapters * low if grouped else 0
    down = 2 * masked if backward else m * k + (4 * masked if grouped else 2 * low)
    unfused = minimum + size * (down + (4 if grouped or backward else 6) * m * n)
    columns = -(-n // entry.config["BLOCK_N"])
    traffic = Traffic(
        bytes=minimum + (0 if backward else size * low),
        minimum=minimum,
        unfused=unfused,
        flops=2 * m * (9 * n * k + padded * (9 * n if backward else 9 * k * columns + n)),
        needed=2 * m * (9 * n * k + rank * (9 * n if backward else 9 * k + n)),
    )
    name = ("grouped_" if grouped else "") + "lora_conv " + ("dx" if backward else "forward")
    return Case(name, f"m={m} n={n} k={k} 3x3 r={rank}", dtype, source, traffic)


def _outer(entry: Entry, dtype: str, rank: int, of_a: bool) -> Case:
    m, width = entry.shape["m"], entry.shape["u"]
    n_u, n_v = (width, rank) if of_a else (rank, width)
    pointers = dict.fromkeys(("u", "v", "out"), dtype)
    pointers |= dict.fromkeys(("order", "group_first", "group_end"), "i32")
    blocks = {
        "BLOCK_U": min(entry.config["BLOCK_U"], matmul.rank_block(n_u)),
        "BLOCK_V": min(entry.config["BLOCK_V"], matmul.rank_block(n_v)),
    }
    constants = {"PRECISION": "tf32", **blocks}
    source = _source(
        matmul.grouped_outer_kernel, entry, pointers, constants, {"u_c", "v_c"}, {"tokens"}
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


def _merge(entry: Entry, dtype: str, rank: int, kernel: int) -> Case:
    rows, cols, low = entry.shape["rows"], entry.shape["cols"], rank * kernel
    pointers = dict.fromkeys(("weight", "a", "b", "out"), dtype)
    strides = {"w_w", "o_w"} if kernel > 1 else {"w_i", "o_i"}
    unaligned = {"w_h", "o_h", "w_i", "o_i", "o_e", "a_e", "b_e"}
    ones = {"a_c", "b_r"} | strides
    constants = {"PRECISION": "ieee" if dtype == "fp32" else "tf32", "KERNEL": kernel}
    source = _source(
        elementwise.merge_lora_kernel, entry, pointers, constants, ones, unaligned - ones
    )
    size = DTYPES[dtype]
    minimum = size * (2 * rows * cols + low * (rows + cols))
    flops = 2 * rows * cols * low
    traffic = Traffic(minimum, minimum, minimum + size * 4 * rows * cols, flops, flops)
    form = "conv" if kernel > 1 else "linear"
    return Case(f"merge_lora {form}", f"{rows}x{cols} r={low}", dtype, source, traffic)


def _ddim(entry: Entry, dtype: str) -> Case:
    names = ("x_t", "eps", "gradient", "noise", "out")
    constants = dict.fromkeys(("CLIP", "GRADIENT", "NOISE"), True)
    pointers = dict.fromkeys(names, dtype) | dict.fromkeys(
        ("signal", "signal_prev", "sigma"), "fp32"
    )
    source = _source(elementwise.guided_ddim_kernel, entry, pointers, constants, set(), set())
    return _step("guided_ddim_step", entry, dtype, source, 5, 40)


def _ddpm(entry: Entry, dtype: str, pixelwise: bool) -> Case:
    names = ("x_t", "eps", "gradient", "noise", "out")
    constants = dict.fromkeys(("CLIP", "GRADIENT", "NOISE"), True)
    constants |= {"PIXELWISE": pixelwise, "VARIANCE": not pixelwise}
    vectors = ("signal", "x0_weight", "x_t_weight", "variance")
    pointers = dict.fromkeys(names, dtype) | dict.fromkeys(vectors, "fp32")
    pointers["log_variance"] = dtype if pixelwise else "fp32"
    ones = set() if pixelwise else {"log_variance_b"}
    source = _source(elementwise.guided_ddpm_kernel, entry, pointers, constants, ones, set())
    name = "guided_ddpm_step" + (" learned variance" if pixelwise else "")
    passes, eager = (6, 34) if pixelwise else (5, 26)
    return _step(name, entry, dtype, source, passes, eager)


def _step(name: str, entry: Entry, dtype: str, source: Source, passes: int, eager: int) -> Case:
    """A case that moves whole images `passes` times, the eager sequence `eager` times."""
    batch, pixels = entry.shape["batch"], entry.shape["pixels"]
    images = batch * pixels * DTYPES[dtype]
    traffic = Traffic(passes * images, passes * images, eager * images)
    return Case(name, f"batch={batch} pixels={pixels}", dtype, source, traffic)


def _transfer(entry: Entry, dtype: str) -> Case:
    rows, classes = ROWS, entry.shape["classes"]
    pointers = dict.fromkeys(("student", "teacher", "gradient"), dtype) | {"losses": "fp32"}
    constants = {"BLOCK_CLASSES": 1 << (classes - 1).bit_length()}
    unaligned = set() if classes % 16 == 0 else {"classes", "student_b", "teacher_b"}
    kernel = elementwise.transfer_loss_kernel
    source = _source(kernel, entry, pointers, constants, set(), unaligned | {"rows"})
    logits = rows * classes * DTYPES[dtype]
    traffic = Traffic(3 * logits + 4 * rows, 3 * logits, 15 * logits)
    return Case("transfer_loss", f"rows={rows} classes={classes}", dtype, source, traffic)


def _source(
    kernel: Any,
    entry: Entry,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    ones: set[str],
    unaligned: set[str] | frozenset[str],
) -> Source:
    tiles = {name: v for name, v in entry.config.items() if name.startswith("BLOCK")}
    options = {name: v for name, v in entry.config.items() if name.startswith("num_")}
    return Source(
        kernel=kernel,
        pointers=pointers,
        floats=frozenset({"scale", "inverse_tau"}),
        constants=tiles | dict.fromkeys(ones, 1) | dict(constants),
        unaligned=frozenset(unaligned),
        options=options,
    )
