"""The CPU is told by name and by number; what it can do follows from its flags and limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppap.compute import cpu
from ppap.compute.cpu import Cpu, cpu_model, instruction_set, this_cpu

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 7

processor\t: 1
cpu family\t: 7
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd40\n"

AVX2 = "sse4_1 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq"
CASCADE_LAKE = f"{AVX512} avx512_vnni"
ZEN_4 = f"{CASCADE_LAKE} avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN_4} avx_vnni avx512_fp16 amx_tile amx_int8 amx_bf16"


def read(flags: str, capability: str = "AVX512", **environment: str) -> Cpu:
    text = f"processor\t: 0\nmodel name\t: A processor @ 2 GHz\nflags\t\t: {flags}\n"
    return Cpu.read(text, capability, environment)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (XEON, "Intel(R) Xeon(R) Processor (family 6, model 85, stepping 7)"),
        (ARM, "aarch64"),
        (None, "aarch64"),
    ],
)
def test_a_cpu_is_named_by_what_the_system_tells(
    text: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.platform, "processor", lambda: "")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu.cpu_model.__wrapped__() == name


@pytest.mark.parametrize(
    ("text", "limit", "leads"),
    [
        (XEON, "", True),
        (XEON, "AVX2", False),
        (XEON.replace("GenuineIntel", "AuthenticAMD"), "", False),
        (ARM, "", False),
    ],
)
def test_mkl_leads_on_intel_unless_it_is_held_back(text: str, limit: str, leads: bool) -> None:
    assert Cpu.read(text, "AVX512", {"MKL_ENABLE_INSTRUCTIONS": limit}).mkl_leads == leads


@pytest.mark.parametrize(
    ("vendor", "flags", "limit", "quick"),
    [
        ("AuthenticAMD", ZEN_4, "", True),
        ("AuthenticAMD", CASCADE_LAKE, "", False),
        ("GenuineIntel", SAPPHIRE_RAPIDS, "", True),
        ("GenuineIntel", f"{ZEN_4} avx512_fp16", "", False),  # a hypervisor may hide AMX
        ("GenuineIntel", SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", False),
    ],
)
def test_bfloat16_is_quick_on_amd_and_by_amx(
    vendor: str, flags: str, limit: str, quick: bool
) -> None:
    text = f"vendor_id\t: {vendor}\nflags\t: {flags}\n"
    assert Cpu.read(text, "AVX512", {"ONEDNN_MAX_CPU_ISA": limit}).quick_bfloat16 == quick


def test_limits_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cpu.ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert cpu.instruction_limits() == {}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cpu.instruction_limits() == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.parametrize(
    ("flags", "capability", "onednn", "native"),
    [
        ("sse2", "DEFAULT", "", False),
        ("sse4_1", "DEFAULT", "SSE41", False),
        (AVX2, "AVX2", "AVX2", False),
        (f"{AVX2} avx_vnni", "AVX2", "AVX2_VNNI", False),
        (CASCADE_LAKE, "AVX512", "AVX512_CORE_VNNI", False),
        (ZEN_4, "AVX512", "AVX512_CORE_BF16", True),
        (SAPPHIRE_RAPIDS, "AVX512", "AVX512_CORE_AMX", True),
    ],
)
def test_the_best_instructions_and_native_bfloat16_are_read_off_the_flags(
    flags: str, capability: str, onednn: str, native: bool
) -> None:
    found = read(flags, capability)
    assert found.model == "A processor @ 2 GHz"
    assert found.onednn == onednn
    assert found.native_bfloat16 == native


@pytest.mark.parametrize(
    ("capability", "limit", "onednn", "native"),
    [
        ("AVX2", "", "AVX512_CORE_AMX", False),
        ("DEFAULT", "SSE41", "SSE41", False),
        ("AVX2", "AVX2", "AVX2", False),
        ("AVX512", "avx512_core", "AVX512_CORE", False),
        ("AVX512", "AVX512_CORE_VNNI", "AVX512_CORE_VNNI", False),
        ("AVX512", "AVX512_CORE_BF16", "AVX512_CORE_BF16", True),
        ("AVX512", "DEFAULT", "AVX512_CORE_AMX", True),
        ("AVX512", "no such set", "AVX512_CORE_AMX", True),
    ],
)
def test_the_environment_switches_instructions_off(
    capability: str, limit: str, onednn: str, native: bool
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        found = read(SAPPHIRE_RAPIDS, capability, **{name: limit})
        assert found.onednn == onednn
        assert found.native_bfloat16 == native


def test_an_instruction_set_names_every_library_that_rounding_depends_on() -> None:
    assert read(CASCADE_LAKE).instruction_set == "AVX512, oneDNN AVX512_CORE_VNNI"
    limited = read(CASCADE_LAKE, "AVX2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="avx2")
    assert limited.instruction_set == "AVX2, oneDNN AVX2, MKL up to AVX2"
    assert Cpu("An ARM", frozenset(), "NEON").instruction_set == "NEON"


def test_a_processor_that_tells_nothing_has_a_name_and_no_native_bfloat16() -> None:
    unknown = Cpu.read("", "DEFAULT", {})
    assert unknown.model
    assert not unknown.native_bfloat16


def test_this_processor_is_asked() -> None:
    assert cpu_model() == this_cpu().model != ""
    assert instruction_set().startswith(torch.backends.cpu.get_cpu_capability())


def test_another_process_with_a_limit_gets_another_answer() -> None:
    limits = {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    }
    program = (
        "from ppap.compute.cpu import instruction_set, native_bfloat16\n"
        "print(instruction_set(), native_bfloat16(), sep='; ')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | limits,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "DEFAULT, oneDNN SSE41, MKL up to SSE4_2; False\n"
