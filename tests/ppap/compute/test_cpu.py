"""The CPU is told by name and by number, and so is what it is held to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppap.compute import cpu

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


def test_limits_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cpu.ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert cpu.instruction_limits() == {}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cpu.instruction_limits() == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_lowered_instruction_set_is_seen() -> None:
    code = "from ppap.compute.cpu import instruction_set; print(instruction_set())"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() in ("DEFAULT", "NO AVX")
