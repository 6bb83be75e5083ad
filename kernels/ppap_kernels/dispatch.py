"""Which implementation runs an operation, and with which launch configuration.

Every operation takes `backend`: "torch" and "triton" force one, "auto" runs torch on a CPU and,
on a GPU, what the table of that GPU's measurements says. A table is a JSON file in `configs/`,
named after the GPU; where a GPU has none, `configs/default.json` serves, whose entries are not
measured and say so. Within a table the entry of the nearest shape is taken (smallest sum of
absolute differences of log2 of the dimensions).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Backend", "Entry", "interpreting", "nearest", "select", "slug", "table", "uses_op"]

Backend = Literal["auto", "torch", "triton"]
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        shape: problem size by dimension name, for example {"m": 2048, "n": 384}.
        backend: "torch" where torch was the faster at this shape, else "triton".
        config: tile sizes, num_warps and num_stages of the Triton kernel.
        tuned: False for an entry that no measurement stands behind.
    """

    shape: Mapping[str, int]
    backend: str
    config: Mapping[str, int]
    tuned: bool


def interpreting() -> bool:
    """True where Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def uses_op(backend: Backend, x: Tensor) -> bool:
    """Whether a call goes through the custom operator (True) or through plain torch (False).

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
    return backend == "auto" and x.is_cuda


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
    if x.is_cuda:
        entry = nearest(table(torch.cuda.get_device_name(x.device))[kernel], shape)
        return entry if force or entry.backend == "triton" else None
    return nearest(table("default")[kernel], shape) if interpreting() else None


def nearest(entries: tuple[Entry, ...], shape: Mapping[str, int]) -> Entry:
    """The entry whose shape is nearest in log2; the first of equals."""

    def distance(entry: Entry) -> float:
        return sum(abs(math.log2(max(shape[d], 1) / size)) for d, size in entry.shape.items())

    return min(entries, key=distance)


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
            Entry(e["shape"], e["backend"], e["config"], bool(document["tuned"])) for e in entries
        )
        for kernel, entries in document["kernels"].items()
    }
