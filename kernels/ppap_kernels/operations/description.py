"""How an operation is described: problems to time, kernels to tune and to compile, traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ppap_kernels.dispatch import Backend, Entry

if TYPE_CHECKING:
    from ppap_kernels.cubin import Source

__all__ = [
    "DTYPES",
    "EXPERTS",
    "PASSES",
    "Case",
    "Kernel",
    "Launches",
    "Problem",
    "Tensors",
    "Traffic",
    "Way",
    "compiled",
    "draws",
    "normal",
    "ours",
    "source_of",
]

PASSES = ("forward", "input gradient", "full backward")
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}
"""Element types of the audit, with their bytes."""
EXPERTS = 5
Tensors = dict[str, Tensor]


class Launches(NamedTuple):
    """What tuning times of a kernel.

    Attributes:
        launch: the kernel itself, with a configuration.
        plain: torch's way of doing the same.
        called: the kernel through its operator, which costs several times the launch; with the
            configuration of the GPU's table.
    """

    launch: Callable[[dict[str, int]], Tensor]
    plain: Callable[[], Tensor]
    called: Callable[[], Tensor]


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
class Problem:
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


@dataclass(frozen=True)
class Kernel:
    """One kernel of the tables of configurations.

    Attributes:
        name: in the tables.
        cases: (entry, element type, rank) -> what the audit compiles.
        ranked: whether the audit goes through ranks.
        candidates: values of each field of a configuration that tuning combines.
        launches: (shape, element type, device) -> what tuning times; None for what is not tuned.
    """

    name: str
    cases: Callable[[Entry, str, int], Iterator[Case]]
    ranked: bool = True
    candidates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    launches: Callable[[Mapping[str, int], torch.dtype, torch.device], Launches] | None = None


def ours(run: Callable[[Tensors, Backend], Tensor], gpu: bool) -> tuple[Way, ...]:
    """The dispatcher's choice, and where there is a GPU each of what it chooses from."""
    forced = (
        Way("ours, triton", lambda x: run(x, "triton")),
        Way("ours, torch", lambda x: run(x, "torch")),
    )
    return (Way("ours", lambda x: run(x, "auto")), *(forced if gpu else ()))


def compiled(function: Callable[[Tensors], Tensor], gpu: bool) -> tuple[Way, ...]:
    """Torch's compiler, where there is a GPU."""
    if not gpu:  # a minute each on a CPU, for nothing that is run there
        return ()
    return (Way("torch.compile", torch.compile(function, fullgraph=True, dynamic=False)),)


def normal(dtype: torch.dtype, on: torch.device, **shapes: tuple[int, ...]) -> Tensors:
    """Normal tensors; all but the first are scaled by their last dimension's root."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if i else 1)).to(
            on, dtype
        )
        for i, (name, shape) in enumerate(shapes.items())
    }


def draws(dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    """A function of a size that gives normal tensors, scaled by their last dimension's root."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        drawn: Tensor = torch.randn(size, generator=generator) / float(size[-1]) ** 0.5
        return drawn.to(device, dtype)

    return draw


def source_of(
    kernel: Any,
    entry: Entry,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    ones: set[str],
    unaligned: set[str] | frozenset[str],
) -> Source:
    """A kernel at an entry's configuration; see :class:`ppap_kernels.cubin.Source`."""
    from ppap_kernels.cubin import Source

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
