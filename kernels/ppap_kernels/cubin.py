"""Compile Triton kernels for a GPU that is not there, and read what they need off the cubins."""

from __future__ import annotations

import re
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

__all__ = ["GPUS", "Gpu", "Resources", "Source", "compile_for", "occupancy"]

TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")


@dataclass(frozen=True)
class Gpu:
    """Published figures of a GPU; dense rates without sparsity.

    Attributes:
        name: as in the tables.
        arch: compute capability times ten.
        bandwidth: bytes per second.
        flops: tensor-core operations per second by element type.
        shared: bytes of shared memory per multiprocessor.
    """

    name: str
    arch: int
    bandwidth: float
    flops: Mapping[str, float]
    shared: int


# NVIDIA's data sheets: A100 80GB SXM, H100 SXM5, HGX B200 (per GPU).
GPUS = (
    Gpu("A100", 80, 2.039e12, {"fp16": 312e12, "bf16": 312e12, "fp32": 156e12}, 164 * 1024),
    Gpu("H100", 90, 3.35e12, {"fp16": 989e12, "bf16": 989e12, "fp32": 494e12}, 228 * 1024),
    Gpu("B200", 100, 8.0e12, {"fp16": 2250e12, "bf16": 2250e12, "fp32": 1100e12}, 228 * 1024),
)


@dataclass(frozen=True)
class Source:
    """A kernel with everything a launch would specialise it on.

    Attributes:
        kernel: the jitted function.
        pointers: element type of each pointer argument, as "fp16" or "i32"; aligned to 16 bytes.
        floats: arguments that are numbers in float32.
        constants: compile-time arguments, and integers that the launch would see as 1.
        unaligned: integers that are no multiple of 16; all others are taken to be.
        options: num_warps and num_stages.
    """

    kernel: Any
    pointers: Mapping[str, str]
    floats: frozenset[str]
    constants: Mapping[str, Any]
    unaligned: frozenset[str]
    options: Mapping[str, int]


@dataclass(frozen=True)
class Resources:
    """What one block of a compiled kernel takes.

    Attributes:
        registers: per thread.
        spills: bytes of local memory per thread, which is where spilled registers go.
        shared: bytes of shared memory per block.
        warps: per block.
        tensor_core: the tensor-core instruction in the machine code, "" if there is none.
    """

    registers: int
    spills: int
    shared: int
    warps: int
    tensor_core: str


def compile_for(sources: Sequence[Source], arch: int) -> list[Resources]:
    """Compile for compute capability arch / 10 and read the cubins. Triton caches compilations.

    Raises:
        RuntimeError: under TRITON_INTERPRET, where kernels are not compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels cannot be compiled under TRITON_INTERPRET=1")
    compiled = [_compile(source, arch) for source in sources]
    read = _read([one.asm["cubin"] for one in compiled])
    return [
        Resources(registers, spills, one.metadata.shared, one.metadata.num_warps, instruction)
        for one, (registers, spills, instruction) in zip(compiled, read, strict=True)
    ]


def occupancy(resources: Resources, gpu: Gpu) -> float:
    """Share of a multiprocessor's 64 warps that can be resident, in [0, 1]."""
    # Registers come in units of 256 per warp; each block keeps 1 KiB of shared memory reserved.
    per_warp = -(-resources.registers * 32 // 256) * 256
    by_registers = 65536 // (per_warp * resources.warps)
    by_shared = gpu.shared // (resources.shared + 1024)
    blocks = min(by_registers, by_shared, 64 // resources.warps, 32)
    return blocks * resources.warps / 64


def _compile(source: Source, arch: int) -> Any:
    names = source.kernel.arg_names
    signature = {name: _type(source, name) for name in names}
    divisible = [["tt.divisibility", 16]]
    aligned = {
        (i,): divisible
        for i, name in enumerate(names)
        if signature[name] not in ("constexpr", "fp32") and name not in source.unaligned
    }
    constants = {name: source.constants[name] for name in names if name in source.constants}
    return triton.compile(
        ASTSource(source.kernel, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        # Said outright, since Triton's default is going to change.
        options={"enable_fp_fusion": True, **dict(source.options)},
    )


def _type(source: Source, name: str) -> str:
    if name in source.constants:
        return "constexpr"
    if name in source.pointers:
        return f"*{source.pointers[name]}"
    return "fp32" if name in source.floats else "i32"


def _read(cubins: Sequence[bytes]) -> list[tuple[int, int, str]]:
    """Registers, bytes of local memory and tensor-core instruction of each, for one architecture.

    The disassembler takes longer to start than to read a kernel: it sees all of them at once.
    """
    found, codes, arch = [], [], ""
    with tempfile.TemporaryDirectory() as folder:
        for number, cubin in enumerate(cubins):
            path = Path(folder, f"{number}.cubin")
            path.write_bytes(cubin)
            found.append(_usage(_output(folder, "cuobjdump", "-res-usage", path.name)))
            _output(folder, "cuobjdump", "-xtext", "all", path.name)
            (code,) = Path(folder).glob(f"{number}-*.bin")
            arch = code.name.split(".sm_")[1].split(".")[0]
            codes.append(code.read_bytes())
        Path(folder, "all.bin").write_bytes(b"".join(codes))
        text = _output(folder, "nvdisasm", "-b", f"SM{arch}", "all.bin") if codes else ""
    starts = [0, *accumulate(map(len, codes))]
    instructions = [""] * len(codes)
    for line in re.finditer(r"/\*([0-9a-f]{4,})\*/(.*)", text):
        number = bisect_right(starts, int(line[1], 16)) - 1
        instruction = TENSOR_CORE.search(line[2])
        if instruction and not instructions[number]:
            instructions[number] = instruction[1]
    return [(*usage, name) for usage, name in zip(found, instructions, strict=True)]


def _usage(text: str) -> tuple[int, int]:
    usage = {field: int(value) for field, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def _output(folder: str, tool: str, *arguments: str) -> str:
    """What one of the toolkit's programs that come with Triton says, to stdout or stderr."""
    command = [getattr(triton.knobs.nvidia, tool).path, *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout + run.stderr
