"""Which implementation runs an operation, and with which launch configuration.

Every operation takes `backend`: "torch" and "triton" force one. "auto" takes Triton only where it
was measured to be faster: on the GPU that is here, in the operands' type, near the shape (within
a factor of four in all), and launched in the same manner, from a CUDA graph or from Python, where
a launch costs more than most kernels take. Everywhere else it is torch. Whoever captures a graph
makes the calls before it within :func:`as_captured`.

A table is a JSON file in `configs/`, named after the GPU. `configs/default.json`, whose entries are
not measured and say so, gives configurations to a Triton that is forced. Within a table the entry
of the nearest shape is taken (smallest sum of absolute differences of log2 of the dimensions).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Backend",
    "Entry",
    "as_captured",
    "interpreting",
    "nearest",
    "select",
    "slug",
    "table",
    "uses_op",
]

Backend = Literal["auto", "torch", "triton"]
NEAR = 2.0
"""Sum of absolute differences of log2 of the dimensions, up to which a measurement speaks."""
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        shape: problem size by dimension name, for example {"m": 2048, "n": 384}.
        backend: "torch" where torch was the faster at this shape, else "triton"; in a CUDA graph,
            where a launch from Python costs nothing.
        config: tile sizes, num_warps and num_stages of the Triton kernel.
        tuned: False for an entry that no measurement stands behind.
        eager: the same as an ordinary call.
        dtypes: of the operands that were measured, "bfloat16" for example; all where there are
            none.
    """

    shape: Mapping[str, int]
    backend: str
    config: Mapping[str, int]
    tuned: bool
    eager: str = "torch"
    dtypes: tuple[str, ...] = ()

    def distance(self, shape: Mapping[str, int]) -> float:
        """Of a shape from the entry's: the sum over its dimensions of differences of log2."""
        return sum(abs(math.log2(max(shape[d], 1) / size)) for d, size in self.shape.items())

    def measured_in(self, dtype: torch.dtype) -> bool:
        """Whether the entry is of this type, or of all."""
        return not self.dtypes or str(dtype).removeprefix("torch.") in self.dtypes


def interpreting() -> bool:
    """True where Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_WARMING_UP: list[None] = []
"""An element for each :func:`as_captured` under way; of all threads, for autograd has its own."""


@contextmanager
def as_captured() -> Iterator[None]:
    """Within it implementations are chosen as in a CUDA graph: for the calls before a capture.

    The first launch of a kernel loads its code, which no stream that is captured allows.
    """
    _WARMING_UP.append(None)
    try:
        yield
    finally:
        _WARMING_UP.pop()


def _in_graph() -> bool:
    return bool(_WARMING_UP) or torch.cuda.is_current_stream_capturing()


def uses_op(backend: Backend, x: Tensor, kernel: str) -> bool:
    """Whether a call goes through the custom operator (True) or through plain torch (False).

    With "auto" it does where Triton could be chosen for some shape: the operator costs time itself.

    Args:
        backend: that was asked for.
        x: the tensor whose device and dtype decide.
        kernel: name of the kernel in the tables.

    Raises:
        ValueError: for an unknown backend, or Triton forced where it cannot run.
        TypeError: if Triton is forced on a dtype that the kernels do not compute in.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'triton', got {backend!r}")
    if backend == "triton":
        if not x.is_cuda and not interpreting():
            raise ValueError(
                f"backend='triton' needs CUDA tensors, got one on {x.device}; "
                "use backend='auto', or set TRITON_INTERPRET=1 before the import"
            )
        if x.dtype not in TRITON_DTYPES:
            raise TypeError(
                f"the Triton kernels take float16, bfloat16 and float32, got {x.dtype}; "
                "use backend='torch'"
            )
        return True
    if backend != "auto" or not x.is_cuda:
        return False
    launched_free = torch.compiler.is_compiling() or _in_graph()
    chosen: bool = _may_win(kernel, x.device.index, launched_free)
    return chosen


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _may_win(kernel: str, device: int | None, launched_free: bool) -> bool:
    """Whether Triton was measured to be faster at any shape."""
    entries = [entry for entry in table(_gpu(device))[kernel] if entry.tuned]
    return any((e.backend if launched_free else e.eager) == "triton" for e in entries)


@cache
def _gpu(device: int | None) -> str:
    """A GPU's name, the current one's for None."""
    return torch.cuda.get_device_name(device)


def select(kernel: str, x: Tensor, shape: Mapping[str, int], force: bool) -> Entry | None:
    """The entry to launch `kernel` with, or None where torch is to run instead.

    Args:
        kernel: name of the kernel in the tables.
        x: the tensor whose device and dtype decide.
        shape: problem size by dimension name.
        force: take Triton even where the table prefers torch.
    """
    if x.dtype not in TRITON_DTYPES:
        return None
    if not x.is_cuda:
        return nearest(table("default")[kernel], shape) if interpreting() else None
    entries = table(_gpu(x.device.index))[kernel]
    alike = tuple(entry for entry in entries if entry.measured_in(x.dtype))
    if force:
        return nearest(alike or entries, shape)
    measured = tuple(entry for entry in alike if entry.tuned)
    if not measured:
        return None
    entry = nearest(measured, shape)
    way = entry.backend if _in_graph() else entry.eager
    return entry if way == "triton" and entry.distance(shape) <= NEAR else None


def nearest(entries: tuple[Entry, ...], shape: Mapping[str, int]) -> Entry:
    """The entry whose shape is nearest in log2; the first of equals."""
    return min(entries, key=lambda entry: entry.distance(shape))


@cache
def table(gpu: str) -> dict[str, tuple[Entry, ...]]:
    """Entries by kernel for a GPU, the defaults where that GPU has no entry for a kernel.

    Args:
        gpu: as torch.cuda.get_device_name gives it, or "default".
    """
    entries = _read("default")
    return entries if gpu == "default" else entries | _read(slug(gpu))


def slug(gpu: str) -> str:
    """A GPU's name as that of its table's file."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def _read(name: str) -> dict[str, tuple[Entry, ...]]:
    path = resources.files("ppap_kernels").joinpath("configs", f"{name}.json")
    if not path.is_file():
        return {}
    document = json.loads(path.read_text())
    return {
        kernel: tuple(
            Entry(
                e["shape"],
                e["backend"],
                e["config"],
                bool(document["tuned"]),
                e.get("eager", "torch"),
                tuple(e.get("dtypes", ())),
            )
            for e in entries
        )
        for kernel, entries in document["kernels"].items()
    }
