"""Every operation, in every pass, against the other ways of doing it.

On a GPU in bfloat16 and float16; on a CPU the same lines run at small sizes in float32. No way is
timed before its result and gradients agree with the reference in float64.
"""

from __future__ import annotations

from functools import lru_cache, partial

import pytest
import torch
from ppap_kernels.operations import PASSES, Problem, problems

from bench.conftest import Measure
from bench.groups import Group, Way

from .preparation import prepared
from .timing import device, device_memory, rounds_on, seconds_of

ON = device()
DTYPES = (torch.bfloat16, torch.float16) if ON.type == "cuda" else (torch.float32,)
FLOPS = {"forward": 1, "input gradient": 2, "full backward": 3}
"""Of a pass, in those of the forward pass."""
EAGER = "torch eager"

Kernel = tuple[Problem, torch.dtype, str]
KERNELS: list[Kernel] = [
    (case, dtype, what)
    for case in problems(ON)
    for dtype in DTYPES
    for what in PASSES
    if what == "forward" or "x" in case.make(torch.float32, torch.device("cpu"))
    if what != "full backward" or case.trained
]
ALL = [
    pytest.param(kernel, way.name, id="-".join([case.name, case.shape, what, str(dtype), way.name]))
    for kernel in KERNELS
    for case, dtype, what in [kernel]
    for way in case.ways
    if what in way.passes
]


@lru_cache(maxsize=1)  # its tests follow one another
def group_of(kernel: Kernel) -> Group:
    """An operation's pass in an element type, in all ways of doing it."""
    case, dtype, what = kernel
    named = {way.name: way for way in case.ways}

    def make(way: str) -> Way:
        run, gate = prepared(case, named[way], dtype, what, ON)
        return Way(run, check=gate)

    return Group(
        f"{case.name} {case.shape}, {what}, {str(dtype).removeprefix('torch.')}",
        make,
        reference=EAGER,
        rounds=rounds_on(ON),
        stopwatch=partial(seconds_of, on=ON),
        memory=device_memory if ON.type == "cuda" else None,
    )


@pytest.mark.parametrize(("kernel", "way"), ALL)
def test_kernel(measure: Measure, kernel: Kernel, way: str) -> None:
    case, dtype, what = kernel
    info = measure(group_of(kernel), way)
    info["way"] = "reference" if way == EAGER else way
    info["device"] = ON.type
    seconds = info["ms"] / 1e3
    if "peak_mib" in info:  # what a call needs, whatever else is on the device
        info["peak_mib"] = info["peak_above_resident_mib"]
    if what == "forward":
        info["gb_per_second"] = round(case.bytes(dtype.itemsize) / seconds / 1e9, 2)
    info["gflops"] = round(FLOPS[what] * case.flops / seconds / 1e9, 1)
