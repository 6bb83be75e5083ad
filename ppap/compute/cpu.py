"""Which CPU this process computes on, as far as speed and rounding depend on it.

Sums run in another order on another instruction set, and hypervisors often hide a CPU's name, so
that its family and model are given too.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["ISA_LIMITS", "cpu_model", "instruction_limits", "instruction_set"]

ISA_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)
"""Variables by which torch, oneDNN and MKL are held to fewer instructions than the CPU has."""
CPUINFO = Path("/proc/cpuinfo")


@cache
def cpu_model() -> str:
    """Name of the CPU, with family, model and stepping where Linux tells them.

    For example ``AMD EPYC (family 25, model 17, stepping 1)``.
    """
    name = platform.processor() or platform.machine() or "unknown"
    if not CPUINFO.is_file():
        return name
    first = CPUINFO.read_text(errors="replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get("model name") or name
    numbers = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    known = [f"{word} {facts[key]}" for word, key in numbers.items() if facts.get(key)]
    return f"{name} ({', '.join(known)})" if known else name


def instruction_set() -> str:
    """The instructions that torch's own kernels use, such as ``AVX512``, ``AVX2`` or ``DEFAULT``.

    Fixed when torch is first used; ``ATEN_CPU_CAPABILITY`` lowers it.
    """
    import torch  # records of runs are read where there is no torch

    return torch.backends.cpu.get_cpu_capability()


def instruction_limits() -> dict[str, str]:
    """Those variables of :data:`ISA_LIMITS` that are set in the environment, with their values."""
    return {name: os.environ[name] for name in ISA_LIMITS if os.environ.get(name)}
