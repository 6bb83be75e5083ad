"""What the kernels compile to, and what they should cost: `python -m ppap_kernels.audit`.

Needs no GPU. Every shipped configuration is compiled ahead of time for each of `cubin.GPUS`;
registers, spills, shared memory, occupancy and tensor-core instructions are read off the machine
code. Times are predictions by the roofline, never measurements: the larger of bytes over
bandwidth and operations over tensor-core rate.

Compilations run on all cores and are kept, so that a second audit takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ppap_kernels.compilation import cache_file, compile_all
from ppap_kernels.cubin import GPUS, Gpu, Resources, occupancy
from ppap_kernels.operations import DTYPES, Case, cases

__all__ = ["main", "problems", "resource_table", "roofline", "rows", "traffic_table"]


def roofline(bytes_moved: int, flops: int, dtype: str, gpu: Gpu) -> float:
    """Predicted seconds, a lower bound."""
    return max(bytes_moved / gpu.bandwidth, flops / gpu.flops[dtype])


def problems(case: Case, resources: Resources) -> list[str]:
    """What is wrong with a compiled kernel: spills, or a dot without tensor cores."""
    found = []
    if resources.spills:
        found.append(f"{case.name} {case.shape} {case.dtype}: {resources.spills} bytes spilled")
    if needs_tensor_cores(case) and not resources.tensor_core:
        found.append(f"{case.name} {case.shape} {case.dtype}: no tensor-core instruction")
    return found


def needs_tensor_cores(case: Case) -> bool:
    """A dot in 16 bits or TF32 does; an exact float32 one runs on the ordinary units."""
    return bool(case.traffic.flops) and case.source.constants["PRECISION"] != "ieee"


def resource_table(compiled: Iterable[tuple[Case, Gpu, Resources]]) -> str:
    """Markdown: one row per case and architecture."""
    head = (
        "kernel", "shape", "type", "tiles", "target", "registers", "spills",
        "shared (B)", "occupancy", "tensor core",
    )  # fmt: skip
    rows = [
        (
            case.name, case.shape, case.dtype, _tiles(case), f"sm_{gpu.arch}", str(res.registers),
            str(res.spills), str(res.shared), f"{occupancy(res, gpu):.0%}", res.tensor_core or "-",
        )
        for case, gpu, res in compiled
    ]  # fmt: skip
    return _markdown(head, rows)


def traffic_table(audited: Iterable[Case]) -> str:
    """Markdown: bytes and operations of each workload and the times they predict."""
    times = [f"{gpu.name} (us, predicted)" for gpu in GPUS]
    head = ("kernel", "shape", "type", "MB", "/ minimum", "unfused /", "GFLOP", "/ needed", *times)
    rows = []
    for case in audited:
        t = case.traffic
        fused = [roofline(t.bytes, t.flops, case.dtype, gpu) for gpu in GPUS]
        eager = [roofline(t.unfused, t.needed, case.dtype, gpu) for gpu in GPUS]
        rows.append((
            case.name, case.shape, case.dtype, f"{t.bytes / 1e6:.2f}",
            f"{t.bytes / t.minimum:.2f}", f"{t.unfused / t.bytes:.2f}",
            f"{t.flops / 1e9:.3f}" if t.flops else "-",
            f"{t.flops / t.needed:.2f}" if t.flops else "-",
            *(f"{a * 1e6:.2f} (unfused {b * 1e6:.2f})" for a, b in zip(fused, eager, strict=True)),
        ))  # fmt: skip
    return _markdown(head, rows)


def rows(compiled: Iterable[tuple[Case, Gpu, Resources]]) -> list[dict[str, Any]]:
    """Both tables as one list of records; times in microseconds."""
    found = []
    for case, gpu, res in compiled:
        t = case.traffic
        found.append({
            "kernel": case.name,
            "shape": case.shape,
            "type": case.dtype,
            "tiles": _tiles(case),
            "target": f"sm_{gpu.arch}",
            "gpu": gpu.name,
            "registers": res.registers,
            "spills": res.spills,
            "shared_bytes": res.shared,
            "occupancy": round(occupancy(res, gpu), 4),
            "tensor_core": res.tensor_core,
            "bytes": t.bytes,
            "bytes_minimum": t.minimum,
            "bytes_unfused": t.unfused,
            "flops": t.flops,
            "flops_needed": t.needed,
            "predicted_us": round(roofline(t.bytes, t.flops, case.dtype, gpu) * 1e6, 3),
            "predicted_unfused_us": round(
                roofline(t.unfused, t.needed, case.dtype, gpu) * 1e6, 3
            ),
        })  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the audit as Markdown; return 1 if a kernel spills or misses the tensor cores."""
    parser = argparse.ArgumentParser(prog="python -m ppap_kernels.audit", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--json", type=Path, help="write the tables there, too")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes that compile")
    parser.add_argument("--cache", type=Path, default=cache_file(), help="results of earlier ones")
    options = parser.parse_args(arguments)
    audited = list(cases(tuple(options.dtypes), tuple(options.ranks)))
    pairs = [(case, gpu) for case in audited for gpu in GPUS]
    jobs = [(case.source, gpu.arch) for case, gpu in pairs]
    resources = compile_all(jobs, options.workers, options.cache)
    compiled = [(*pair, found) for pair, found in zip(pairs, resources, strict=True)]
    print("## Compiled kernels\n\nConfigurations: shipped defaults, not tuned on any GPU.\n")
    print(resource_table(compiled))
    print("\n## Traffic and predicted times\n\nRoofline predictions, not measurements.\n")
    print(traffic_table(audited))
    if options.json:
        text = ",\n".join(json.dumps(row) for row in rows(compiled))
        options.json.write_text(f"[\n{text}\n]\n")
    found = [problem for case, _, res in compiled for problem in problems(case, res)]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found else 0


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _tiles(case: Case) -> str:
    source = case.source
    sizes = [str(v) for name, v in source.constants.items() if name.startswith("BLOCK")]
    return "x".join(sizes) + f" w{source.options['num_warps']} s{source.options['num_stages']}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
