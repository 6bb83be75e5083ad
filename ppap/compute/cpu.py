"""Which CPU this process computes on, and what it can do once the environment has had its say.

Sums run in another order on another instruction set. ``ATEN_CPU_CAPABILITY`` limits PyTorch's own
kernels, ``ONEDNN_MAX_CPU_ISA`` those of oneDNN, which does convolutions, and
``MKL_ENABLE_INSTRUCTIONS`` those of MKL, which does most matrix products. Rounding depends on all
three; speed, and whether bfloat16 is native, on the first two. Hypervisors often hide a CPU's
name, so that its family and model are given too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "ISA_LIMITS",
    "Cpu",
    "cpu_model",
    "instruction_limits",
    "instruction_set",
    "native_bfloat16",
    "quick_bfloat16",
    "this_cpu",
]

ISA_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)
"""Variables by which torch, oneDNN and MKL are held to fewer instructions than the CPU has."""
CPUINFO = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
"""What ``/proc/cpuinfo`` calls the vendor."""

ONEDNN: dict[str, frozenset[str]] = {
    "SSE41": frozenset({"sse4_1"}),
    "AVX": frozenset({"avx"}),
    "AVX2": frozenset({"avx2"}),
    "AVX2_VNNI": frozenset({"avx_vnni"}),
    "AVX2_VNNI_2": frozenset({"avx_vnni", "avx_vnni_int8", "avx_ne_convert"}),
    "AVX512_CORE": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    "AVX512_CORE_VNNI": frozenset({"avx512_vnni"}),
    "AVX512_CORE_BF16": frozenset({"avx512_bf16"}),
    "AVX512_CORE_FP16": frozenset({"avx512_fp16"}),
    "AVX512_CORE_AMX": frozenset({"amx_tile", "amx_int8", "amx_bf16"}),
    "AVX512_CORE_AMX_FP16": frozenset({"amx_tile", "amx_fp16"}),
}
"""oneDNN's instruction sets, least first, and the processor's flags that each asks for.

Source: oneDNN's documentation, "CPU dispatcher control"; the flags are those of Linux.
"""


@dataclass(frozen=True)
class Cpu:
    """A CPU, and what the environment allows of it.

    Attributes:
        model: as :func:`cpu_model` gives it.
        flags: features, as ``/proc/cpuinfo`` names them.
        capability: the vector instructions of PyTorch's own kernels, such as ``"AVX512"``;
            ``ATEN_CPU_CAPABILITY`` has been applied.
        onednn_limit: the most that oneDNN may use, as ``ONEDNN_MAX_CPU_ISA`` has it; a value
            that oneDNN does not know limits nothing.
        mkl_limit: the most that MKL may use, as ``MKL_ENABLE_INSTRUCTIONS`` has it.
        vendor: as ``/proc/cpuinfo`` names it, such as ``"GenuineIntel"``.
    """

    model: str
    flags: frozenset[str]
    capability: str
    onednn_limit: str = ""
    mkl_limit: str = ""
    vendor: str = ""

    @property
    def onednn(self) -> str:
        """The most capable of oneDNN's instruction sets in use; "" where it has none of x86."""
        names = list(ONEDNN)
        limit = self.onednn_limit.upper()
        allowed = names[: names.index(limit) + 1] if limit in names else names
        return next((name for name in reversed(allowed) if ONEDNN[name] <= self.flags), "")

    @property
    def instruction_set(self) -> str:
        """Names all that rounding and speed depend on, e.g. ``"AVX512, oneDNN AVX512_CORE"``."""
        parts = [self.capability]
        parts += [f"oneDNN {self.onednn}"] * bool(self.onednn)
        parts += [f"MKL up to {self.mkl_limit.upper()}"] * bool(self.mkl_limit)
        return ", ".join(parts)

    @property
    def native_bfloat16(self) -> bool:
        """Whether products of bfloat16 have instructions of their own (AVX512-BF16, AMX-BF16).

        Elsewhere they are emulated: on an AVX-512 processor without them, a convolution in
        bfloat16 took five times as long as one in float32.
        """
        has = bool({"avx512_bf16", "amx_bf16"} & self.flags)
        return has and self._reaches("AVX512_CORE_BF16") and self.capability.startswith("AVX512")

    @property
    def quick_bfloat16(self) -> bool:
        """Whether products of bfloat16 take less time than those of float32.

        On AMD's Zen 4 AVX512-BF16 doubles what a core multiplies. Intel's processors do so by AMX
        alone: on a Sapphire Rapids whose hypervisor hides it, convolutions and products in
        bfloat16 took 1.5 to 2 times as long as in float32.
        """
        amx = self._reaches("AVX512_CORE_AMX")
        return self.native_bfloat16 and (amx or self.vendor != INTEL)

    @property
    def mkl_leads(self) -> bool:
        """Whether MKL multiplies matrices with the best instructions that there are.

        It has code for each of Intel's processors, and takes slower code on others'.
        """
        return self.vendor == INTEL and not self.mkl_limit

    def _reaches(self, instructions: str) -> bool:
        """Whether oneDNN uses these, or a set that is more capable."""
        names = list(ONEDNN)
        return self.onednn in names[names.index(instructions) :]

    @classmethod
    def read(cls, cpuinfo: str, capability: str, environment: Mapping[str, str]) -> Cpu:
        """Of the text of ``/proc/cpuinfo``, PyTorch's capability, and environment variables."""
        limit = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA", "")
        facts = _facts(cpuinfo)
        return cls(
            model=_model(facts),
            flags=frozenset(facts.get("flags", "").split()),
            capability=capability,
            onednn_limit=limit,
            mkl_limit=environment.get("MKL_ENABLE_INSTRUCTIONS", ""),
            vendor=facts.get("vendor_id", ""),
        )


@cache
def this_cpu() -> Cpu:
    """The CPU of this process; asked once, as the libraries read the environment once.

    Where there is no ``/proc/cpuinfo``, only what PyTorch tells is known.
    """
    import torch  # records of runs are read where there is no torch

    return Cpu.read(_cpuinfo(), torch.backends.cpu.get_cpu_capability(), os.environ)


@cache
def cpu_model() -> str:
    """Name of the CPU, with family, model and stepping where Linux tells them.

    For example ``AMD EPYC (family 25, model 17, stepping 1)``.
    """
    return _model(_facts(_cpuinfo()))


def instruction_set() -> str:
    """What rounding and speed depend on here, such as ``AVX512, oneDNN AVX512_CORE_BF16``.

    It names compiled packages and stands in records. Fixed when torch is first used; see
    :data:`ISA_LIMITS` for what lowers it.
    """
    return this_cpu().instruction_set


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively and the environment lets it."""
    return this_cpu().native_bfloat16


def quick_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, and the environment lets it."""
    return this_cpu().quick_bfloat16


def instruction_limits() -> dict[str, str]:
    """Those variables of :data:`ISA_LIMITS` that are set in the environment, with their values."""
    return {name: os.environ[name] for name in ISA_LIMITS if os.environ.get(name)}


def _cpuinfo() -> str:
    return CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""


def _facts(cpuinfo: str) -> dict[str, str]:
    """What the text says of the first processor."""
    lines = (line.partition(":") for line in cpuinfo.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _model(facts: Mapping[str, str]) -> str:
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    numbers = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    known = [f"{word} {facts[key]}" for word, key in numbers.items() if facts.get(key)]
    return f"{name} ({', '.join(known)})" if known else name
