"""Every operation, in every pass, against the other ways of doing it.

On a GPU in bfloat16 and float16; on a CPU the same lines run at small sizes in float32. No way is
timed before its result and gradients agree with the reference in float64.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from ppap_kernels.operations import PASSES, Problem, Way, problems
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import describe

from .preparation import prepared
from .timing import device, pairs_of

ON = device()
DTYPES = (torch.bfloat16, torch.float16) if ON.type == "cuda" else (torch.float32,)
ALL = [
    pytest.param(case, way, dtype, what, id=f"{case.name}-{case.shape}-{what}-{dtype}-{way.name}")
    for case in problems(ON)
    for dtype in DTYPES
    for what in PASSES
    if what == "forward" or "x" in case.make(torch.float32, torch.device("cpu"))
    if what != "full backward" or case.trained
    for way in case.ways
    if what in way.passes
]


@pytest.mark.parametrize(("case", "way", "dtype", "what"), ALL)
def test_kernel(
    benchmark: BenchmarkFixture,
    pytestconfig: pytest.Config,
    case: Problem,
    way: Way,
    dtype: torch.dtype,
    what: str,
) -> None:
    function, gate = prepared(case, way, dtype, what, ON)
    gate()
    eager = next(other for other in case.ways if other.name == "torch eager")
    reference, _ = prepared(case, eager, dtype, what, ON)
    rounds = pytestconfig.getoption("--bench-rounds") or 0
    pairs, peak = pairs_of(function, reference, ON, rounds)
    seconds = statistics.median(pairs.own)
    passes = {"forward": 1, "input gradient": 2, "full backward": 3}[what]
    kind = str(dtype).removeprefix("torch.")
    group = f"{case.name} {case.shape}, {what}, {kind}"
    info = describe(benchmark, group, "reference" if way.name == "torch eager" else way.name, pairs)
    info["device"] = ON.type
    if ON.type == "cuda":
        info["peak_mib"] = round(peak, 1)
    if what == "forward":
        size = torch.empty(0, dtype=dtype).element_size()
        info["gb_per_second"] = round(case.bytes(size) / seconds / 1e9, 2)
    info["gflops"] = round(passes * case.flops / seconds / 1e9, 1)
