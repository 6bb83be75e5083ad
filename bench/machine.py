"""The machine's ceiling, the operations of some work, and the memory that it takes at its peak."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.paired import Ceiling
from ppap.compute.allocator import return_freed_memory

__all__ = ["Operations", "clock", "measure_ceiling", "peak_memory"]

SIDE = 1536
IMAGES, CHANNELS, PIXELS = 32, 128, 32


def clock(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@torch.no_grad()
def measure_ceiling(calls: int = 5) -> Ceiling:
    """What float32 reaches now: a product of two squares, and a 3 x 3 convolution of images.

    The median of a few calls each, after a warm-up.
    """
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    x = torch.randn(IMAGES, CHANNELS, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).contiguous(memory_format=torch.channels_last)

    def median(function: Callable[[], Any]) -> float:
        return statistics.median([clock(function) for _ in range(calls + 2)][2:])

    return Ceiling(
        convolution=_operations(lambda: F.conv2d(x, weight, padding=1)).convolutions
        / median(lambda: F.conv2d(x, weight, padding=1)),
        product=_operations(lambda: a @ b).products / median(lambda: a @ b),
    )


class Operations(TorchDispatchMode):
    """Adds up torch's own counts; its FlopCounterMode refuses ``torch.autograd.grad``.

    Attributes:
        convolutions: operations in convolutions and their gradients.
        products: operations in all else that is counted: products of matrices, attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.products = 0

    @property
    def total(self) -> int:
        return self.convolutions + self.products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            operations = count(*args, **(kwargs or {}), out_val=found)
            if "convolution" in str(func):
                self.convolutions += operations
            else:
                self.products += operations
        return found


def _operations(function: Callable[[], Any]) -> Operations:
    with Operations() as counter:
        function()
    return counter


def peak_memory(function: Callable[[], Any]) -> tuple[float, float]:
    """MiB resident at the peak of one call, and before it; NaN where the system does not tell."""
    return_freed_memory()
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")  # the high-water mark starts anew (Linux)
    before = _resident("VmRSS")
    function()
    return _resident("VmHWM") / 1024, before / 1024


def _resident(what: str) -> float:
    """KiB."""
    path = Path("/proc/self/status")
    if not path.exists():
        return math.nan
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return float(fields[what].split()[0])
