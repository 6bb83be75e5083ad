"""Ahead-of-time compilation: no spills, tensor cores where there is a dot, bytes as committed."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")

from ppap_kernels.audit import problems, resource_table, roofline, traffic_table
from ppap_kernels.cubin import GPUS, Gpu, Resources, compile_for, occupancy
from ppap_kernels.operations import cases

# All configurations once; `python -m ppap_kernels.audit` goes through all types and ranks.
CASES = list(cases(("fp16",), (16,)))
COMMITTED = {
    "lora_linear forward m=1536 n=384 k=384 r=16": 2 * (2 * 1536 * 384 + 384**2 + 36864),
    "guided_ddim_step batch=8 pixels=196608": 2 * 5 * 8 * 196608,
    "guided_ddpm_step batch=8 pixels=196608": 2 * 5 * 8 * 196608,
    "transfer_loss rows=256 classes=1000": 2 * 3 * 256 * 1000 + 4 * 256,
    "merge_lora linear 1024x1024 r=16": 2 * (2 * 1024**2 + 2 * 1024 * 16),
    "grouped_lora_linear dA m=8192 width=384 r=16": 2 * (8192 * (384 + 16) + 5 * 384 * 16),
    "lora_conv forward m=25088 n=64 k=64 3x3 r=16": (
        2 * (2 * 25088 * 64 + 9 * 64**2 + 16 * (9 * 64 + 64) + 25088 * 16)
    ),
    "lora_conv dx m=25088 n=64 k=64 3x3 r=16": (
        2 * (2 * 25088 * 64 + 9 * 64**2 + 16 * 9 * 64 + 25088 * 16)
    ),
    "grouped_lora_conv forward m=25088 n=64 k=64 3x3 r=16": (
        2 * (2 * 25088 * 64 + 9 * 64**2 + 5 * 16 * (9 * 64 + 64) + 25088 * 16)
    ),
}


@pytest.mark.parametrize("gpu", GPUS, ids=[gpu.name for gpu in GPUS])
def test_no_configuration_spills_or_misses_the_tensor_cores(gpu: Gpu) -> None:
    found = compile_for([case.source for case in CASES], gpu.arch)
    compiled = list(zip(CASES, found, strict=True))
    assert [problem for case, resources in compiled for problem in problems(case, resources)] == []
    assert all(0 < occupancy(resources, gpu) <= 1 for _, resources in compiled)


def test_bytes_stay_at_the_committed_figure() -> None:
    moved = {f"{case.name} {case.shape}": case.traffic.bytes for case in CASES}
    assert {name: moved[name] for name in COMMITTED} == COMMITTED


def test_no_kernel_moves_more_than_the_unfused_sequence_or_less_than_the_minimum() -> None:
    for case in CASES:
        traffic = case.traffic
        assert traffic.minimum <= traffic.bytes < traffic.unfused
        assert traffic.needed <= traffic.flops or not traffic.flops


def test_spills_and_missing_tensor_cores_are_problems() -> None:
    product = CASES[0]
    fine = Resources(registers=64, spills=0, shared=1024, warps=4, tensor_core="HMMA")
    assert problems(product, fine) == []
    assert "16 bytes spilled" in problems(product, replace(fine, spills=16))[0]
    assert "no tensor-core" in problems(product, replace(fine, tensor_core=""))[0]


def test_occupancy_is_bounded_by_registers_shared_memory_and_warps() -> None:
    a100 = GPUS[0]
    light = Resources(registers=32, spills=0, shared=0, warps=4, tensor_core="")
    assert occupancy(light, a100) == 1
    assert occupancy(replace(light, registers=128), a100) == 0.25
    assert occupancy(replace(light, shared=81 * 1024), a100) == 2 * 4 / 64


def test_the_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    a100 = GPUS[0]
    assert roofline(2_039_000, 0, "fp16", a100) == pytest.approx(1e-6)
    assert roofline(1, 312_000_000, "fp16", a100) == pytest.approx(1e-6)


def test_the_tables_are_markdown_and_mark_predictions() -> None:
    fine = Resources(registers=64, spills=0, shared=1024, warps=4, tensor_core="HMMA")
    lines = resource_table([(CASES[0], GPUS[0], fine)]).splitlines()
    assert lines[0].startswith("| kernel | shape |")
    assert lines[1].startswith("| --- |")
    assert "sm_80" in lines[2]
    assert "predicted" in traffic_table(CASES[:1]).splitlines()[0]
