"""The operations, each with every way there is of doing it; one factory for speed and memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ppap_kernels as kernels
import torch
from ppap_kernels import Backend
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PASSES", "Case", "Way", "cases"]

PASSES = ("forward", "input gradient", "full backward")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """One way of computing an operation.

    Attributes:
        name: of the table.
        run: tensors by name -> result.
        comparable: whether its result must agree with the reference's.
        owns: tensors of its own that stand for inputs by name, e.g. a layer's parameters.
        passes: that it can do.
    """

    name: str
    run: Callable[[Tensors], Tensor]
    comparable: bool = True
    owns: Callable[[Tensors], Tensors] = dict
    passes: tuple[str, ...] = PASSES


@dataclass(frozen=True)
class Case:
    """An operation at one size.

    Attributes:
        name: of the operation.
        shape: for the table.
        make: (dtype, device) -> fresh inputs.
        reference: plain torch, also in float64.
        ways: to be compared, ours first.
        trained: inputs that a full backward pass gives gradients; none for operations that are
            not differentiated.
        bytes: (element size) -> bytes that must move in the forward pass.
        flops: of the forward pass.
    """

    name: str
    shape: str
    make: Callable[[torch.dtype, torch.device], Tensors]
    reference: Callable[[Tensors], Tensor]
    ways: tuple[Way, ...]
    trained: tuple[str, ...]
    bytes: Callable[[int], int]
    flops: int


def cases(on: torch.device) -> Iterator[Case]:
    """Sizes that guidance with experts runs on a GPU; small ones on a CPU, to rehearse."""
    gpu = on.type == "cuda"
    linear = (
        [(64 * 197, 384, 1152, 16), (64 * 197, 384, 384, 8), (64 * 197, 1536, 384, 16),
         (16 * 257, 1024, 4096, 16), (2048, 4096, 4096, 64)]
        if gpu else [(200, 48, 144, 4), (500, 384, 384, 16)]
    )  # fmt: skip
    for rows, inner, outer, rank in linear:
        yield _linear(rows, inner, outer, rank, gpu)
    for batch, tokens, inner, outer, rank in (
        [(40, 197, 384, 1152, 16), (64, 257, 1024, 1024, 8)] if gpu else [(10, 17, 48, 144, 4)]
    ):
        yield _grouped(batch, tokens, inner, outer, rank, gpu)
    for batch, channels, side, rank in (
        [(32, 64, 56, 16), (32, 256, 14, 16)] if gpu else [(4, 16, 8, 4)]
    ):
        yield _conv(batch, channels, side, rank, gpu)
    for width, kernel, rank in [(1024, 1, 16), (256, 3, 16)] if gpu else [(48, 1, 4), (16, 3, 4)]:
        yield _merge(width, kernel, rank)
    yield _ddim(8 if gpu else 2, 3, 256 if gpu else 32)
    yield _ddpm(8 if gpu else 2, 3, 256 if gpu else 32)
    for rows, classes in [(256, 1000), (64, 8192)] if gpu else [(40, 10)]:
        yield _transfer(rows, classes)


def _ours(run: Callable[[Tensors, Backend], Tensor], gpu: bool) -> tuple[Way, ...]:
    """The dispatcher's choice, and where there is a GPU each of what it chooses from."""
    forced = (
        Way("ours, triton", lambda x: run(x, "triton")),
        Way("ours, torch", lambda x: run(x, "torch")),
    )
    return (Way("ours", lambda x: run(x, "auto")), *(forced if gpu else ()))


def _compiled(function: Callable[[Tensors], Tensor], gpu: bool) -> tuple[Way, ...]:
    if not gpu:  # a minute each on a CPU, for nothing that is run there
        return ()
    return (Way("torch.compile", torch.compile(function, fullgraph=True, dynamic=False)),)


def _normal(dtype: torch.dtype, on: torch.device, **shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if i else 1)).to(
            on, dtype
        )
        for i, (name, shape) in enumerate(shapes.items())
    }


def _linear(rows: int, inner: int, outer: int, rank: int, gpu: bool) -> Case:
    def eager(t: Tensors) -> Tensor:
        return F.linear(t["x"], t["w"], t["bias"]) + 0.5 * F.linear(
            F.linear(t["x"], t["a"]), t["b"]
        )

    def with_peft(t: Tensors) -> Tensor:
        return _peft_layer(t)(t["x"])  # type: ignore[no-any-return]

    def of_peft(t: Tensors) -> Tensors:
        layer = _peft_layer(t)
        own = {"a": layer.lora_A["0"].weight, "b": layer.lora_B["0"].weight}
        return t | own

    return Case(
        "lora_linear",
        f"{rows}x{inner}->{outer}, r={rank}",
        lambda dtype, on: _normal(
            dtype, on, x=(rows, inner), w=(outer, inner), a=(rank, inner), b=(outer, rank),
            bias=(outer,),
        ),
        eager,
        (
            *_ours(
                lambda t, backend: kernels.lora_linear(
                    t["x"], t["w"], t["a"], t["b"], t["bias"], 0.5, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", eager),
            *_compiled(eager, gpu),
            Way("peft", with_peft, owns=of_peft),
            Way("merged (floor)", lambda t: F.linear(t["x"], t["w"], t["bias"]), comparable=False),
        ),
        ("a", "b"),
        lambda size: size * (rows * (inner + outer) + inner * outer + rank * (inner + outer)),
        2 * rows * (inner * outer + rank * (inner + outer)),
    )  # fmt: skip


_LAYERS: dict[tuple[int, int], nn.Module] = {}


def _peft_layer(t: Tensors) -> Any:
    """peft's layer around these tensors; made once, for its making is not what is timed."""
    from peft import LoraConfig, inject_adapter_in_model

    key = t["w"].data_ptr(), t["a"].data_ptr()
    if key not in _LAYERS:
        outer, inner = t["w"].shape
        rank = t["a"].shape[-2]
        holder = nn.Module()
        holder.base = nn.Linear(inner, outer, device=t["w"].device, dtype=t["w"].dtype)
        holder.base.weight, holder.base.bias = nn.Parameter(t["w"]), nn.Parameter(t["bias"])
        config = LoraConfig(r=rank, lora_alpha=rank // 2, target_modules=["base"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several adapters are meant
            for number in range(len(_each(t["a"]))):
                inject_adapter_in_model(config, holder, adapter_name=str(number))
        layer: Any = holder.base
        for number, (a, b) in enumerate(zip(_each(t["a"]), _each(t["b"]), strict=True)):
            layer.lora_A[str(number)].weight = _as_parameter(a)
            layer.lora_B[str(number)].weight = _as_parameter(b)
        _LAYERS.clear()
        _LAYERS[key] = layer.eval()
    return _LAYERS[key]


def _each(stack: Tensor) -> list[Tensor]:
    return list(stack) if stack.ndim == 3 else [stack]


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)


def _grouped(batch: int, tokens: int, inner: int, outer: int, rank: int, gpu: bool) -> Case:
    experts = 5
    numbers = torch.arange(batch) * 7 % experts

    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = _normal(
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
        return _peft_layer(t)(t["x"], adapter_names=names)  # type: ignore[no-any-return]

    def each(t: Tensors) -> Tensor:
        """A pass of its own for every expert, base included."""
        parts, order = [], []
        for number in range(experts):
            rows = (numbers == number).nonzero()[:, 0].to(t["x"].device)
            merged = t["w"] + 0.5 * t["b"][number] @ t["a"][number]
            parts.append(F.linear(t["x"][rows], merged, t["bias"]))
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    return Case(
        "grouped_lora_linear",
        f"{batch}x{tokens}x{inner}->{outer}, r={rank}, {experts} experts",
        make,
        loop,
        (
            *_ours(
                lambda t, backend: kernels.grouped_lora_linear(
                    t["x"], t["w"], t["a"], t["b"], t["index"], t["bias"], 0.5, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", loop),
            Way("torch, merged per expert", each),
            Way("peft, adapter_names", with_peft, passes=PASSES[:2]),
            *_compiled(loop, gpu),
            Way("merged (floor)", lambda t: F.linear(t["x"], t["w"], t["bias"]), comparable=False),
        ),
        ("a", "b"),
        lambda size: (
            size
            * (batch * tokens * (inner + outer) + inner * outer + experts * rank * (inner + outer))
        ),
        2 * batch * tokens * (inner * outer + rank * (inner + outer)),
    )


def _conv(batch: int, channels: int, side: int, rank: int, gpu: bool) -> Case:
    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = _normal(
            dtype, on, x=(batch, channels, side, side), w=(channels, channels, 3, 3),
            a=(rank, channels, 3, 3), b=(channels, rank, 1, 1),
        )  # fmt: skip
        return {k: v.contiguous(memory_format=torch.channels_last) for k, v in found.items()}

    def eager(t: Tensors) -> Tensor:
        base = F.conv2d(t["x"], t["w"], padding=1)
        return base + 0.5 * F.conv2d(F.conv2d(t["x"], t["a"], padding=1), t["b"])

    pixels = batch * side * side
    return Case(
        "lora_conv",
        f"{batch}x{channels}x{side}x{side}, 3x3, r={rank}",
        make,
        eager,
        (
            *_ours(
                lambda t, backend: kernels.lora_conv(
                    t["x"], t["w"], t["a"], t["b"], None, 0.5, stride=1, padding=1, backend=backend
                ),
                gpu,
            ),
            Way("torch eager", eager),
            *_compiled(eager, gpu),
            Way("merged (floor)", lambda t: F.conv2d(t["x"], t["w"], padding=1), comparable=False),
        ),
        ("a", "b"),
        lambda size: (
            size * (2 * pixels * channels + 9 * channels * (channels + rank) + channels * rank)
        ),
        2 * pixels * (9 * channels * (channels + rank) + channels * rank),
    )


def _merge(width: int, kernel: int, rank: int) -> Case:
    shape = (width, width) if kernel == 1 else (width, width, kernel, kernel)
    side = width * kernel

    def eager(t: Tensors) -> Tensor:
        return t["w"] + 0.5 * (t["b"] @ t["a"]).view(t["w"].shape)

    return Case(
        "merge_lora",
        f"{width}x{width}, {kernel}x{kernel}, r={rank}",
        lambda dtype, on: _normal(
            dtype, on, w=shape, a=(rank * kernel, side), b=(side, rank * kernel)
        ),
        eager,
        (
            Way("ours", lambda t: kernels.merge_lora(
                torch.empty_like(t["w"]), t["w"], t["a"], t["b"], 0.5)),
            Way("torch eager", eager),
        ),
        (),
        lambda size: size * (2 * side * side + 2 * rank * kernel * side),
        2 * side * side * rank * kernel,
    )  # fmt: skip


def _images(batch: int, channels: int, side: int, *names: str) -> Callable[..., Tensors]:
    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = _normal(dtype, on, **dict.fromkeys(names, (batch, channels, side, side)))
        precise = torch.promote_types(dtype, torch.float32)
        levels = torch.linspace(0.2, 0.8, batch, device=on, dtype=precise)
        return found | {"level": levels, "before": levels + 0.1, "sigma": 0.1 * levels}

    return make


def _ddim(batch: int, channels: int, side: int) -> Case:
    def eager(t: Tensors) -> Tensor:
        level, before, sigma = (t[k][:, None, None, None] for k in ("level", "before", "sigma"))
        x, eps = t["x"].to(level.dtype), t["eps"].to(level.dtype)
        x_0 = ((x - (1 - level).sqrt() * eps) / level.sqrt()).clamp(-1, 1)
        eps = (x - level.sqrt() * x_0) / (1 - level).sqrt()
        eps = eps - (1 - level).sqrt() * t["gradient"]
        x_0 = (x - (1 - level).sqrt() * eps) / level.sqrt()
        found = before.sqrt() * x_0 + (1 - before - sigma**2).sqrt() * eps + sigma * t["noise"]
        return found.to(t["x"].dtype)

    def ours(t: Tensors) -> Tensor:
        return kernels.guided_ddim_step(
            t["x"], t["eps"], t["level"], t["before"], t["sigma"], t["gradient"], t["noise"]
        )

    size = batch * channels * side * side
    make = _images(batch, channels, side, "x", "eps", "gradient", "noise")
    shape = f"{batch}x{channels}x{side}x{side}"
    ways = (Way("ours", ours), Way("torch eager", eager))
    return Case("guided_ddim_step", shape, make, eager, ways, (), lambda e: 5 * e * size, 20 * size)


def _ddpm(batch: int, channels: int, side: int) -> Case:
    def eager(t: Tensors) -> Tensor:
        level, before, sigma = (t[k][:, None, None, None] for k in ("level", "before", "sigma"))
        x = t["x"].to(level.dtype)
        x_0 = ((x - (1 - level).sqrt() * t["eps"]) / level.sqrt()).clamp(-1, 1)
        mean = before * x_0 + (1 - before) * x + sigma.exp() * t["gradient"]
        return (mean + (0.5 * sigma).exp() * t["noise"]).to(t["x"].dtype)

    def ours(t: Tensors) -> Tensor:
        return kernels.guided_ddpm_step(
            t["x"], t["eps"], t["level"], t["before"], 1 - t["before"], t["sigma"], None,
            t["gradient"], t["noise"],
        )  # fmt: skip

    size = batch * channels * side * side
    make = _images(batch, channels, side, "x", "eps", "gradient", "noise")
    shape = f"{batch}x{channels}x{side}x{side}"
    ways = (Way("ours", ours), Way("torch eager", eager))
    return Case("guided_ddpm_step", shape, make, eager, ways, (), lambda e: 5 * e * size, 12 * size)


def _transfer(rows: int, classes: int) -> Case:
    def eager(t: Tensors) -> Tensor:
        target = F.log_softmax(
            t["teacher"].to(torch.promote_types(t["x"].dtype, torch.float32)) / 0.25, 1
        )
        logits = F.log_softmax(t["x"].to(target.dtype), 1)
        return F.kl_div(logits, target, reduction="batchmean", log_target=True)

    return Case(
        "transfer_loss",
        f"{rows}x{classes}",
        lambda dtype, on: _normal(dtype, on, x=(rows, classes), teacher=(rows, classes)),
        eager,
        (
            Way("ours", lambda t: kernels.transfer_loss(t["x"], t["teacher"], 0.25)),
            Way("torch eager", eager),
        ),
        (),
        lambda size: 3 * size * rows * classes,
        12 * rows * classes,
    )
