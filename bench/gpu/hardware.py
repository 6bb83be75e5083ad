"""The machine, and the little that differs between a GPU and the CPU that rehearses for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.paired import Paired, interleave, median_interval
from ppap.compute.cpu import cpu_model, instruction_set

__all__ = [
    "PACKAGES",
    "about",
    "clock",
    "interleaved",
    "peak_mib",
    "precision",
    "row_of",
    "still_works",
]

PACKAGES = ("torch", "triton", "timm", "peft", "torchvision", "diffusers", "transformers")


def about() -> dict[str, Any]:
    """Names and versions."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # says for which CUDA, which the package's version may not
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Float32 products in full (``"fp32"``), or on tensor cores (``"tf32"`` and all others)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def still_works() -> bool:
    """False once a kernel has gone astray, after which a process can use its GPU no more."""
    try:
        synchronize()
    except RuntimeError:
        return False
    return True


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock(function: Callable[[], Any]) -> float:
    """Seconds of a call, the device's work included."""
    synchronize()
    began = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - began


def peak_mib(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, and device memory at its peak, what was there before included."""
    if not torch.cuda.is_available():
        return clock(function), 0.0
    torch.cuda.reset_peak_memory_stats()
    seconds = clock(function)
    return seconds, round(torch.cuda.max_memory_allocated() / 2**20, 1)


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way by round: in a round all are called in turn, then in reverse."""
    return interleave(ways, rounds, clock)


def row_of(own: Sequence[float], reference: Sequence[float], images: int) -> dict[str, Any]:
    """A way's figures, beside those of the reference in the same rounds."""
    pairs = Paired.of_calls(own, reference)
    seconds = median_interval(pairs.own)
    return {
        "rounds": len(pairs.own),
        "ms": round(seconds.median * 1e3, 4),
        "reference_ms": round(median_interval(pairs.reference).median * 1e3, 4),
        **pairs.figures(3),
        "spread": round(pairs.spread, 3),
        "images_per_second": round(images / seconds.median, 1),
    }
