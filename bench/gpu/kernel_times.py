"""The kernels' operations against their rivals, from a cold cache, called and as graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from ppap_kernels.dispatch import as_captured
from ppap_kernels.operations import PASSES, Problem, Way, problems
from torch import Tensor

from bench.gpu.hardware import precision
from bench.gpu.session import Deadline, Record
from bench.gpu.sizes import Sizes
from bench.kernels.preparation import prepared
from bench.kernels.timing import pairs_of
from ppap.files.checkpoints import one_line

__all__ = ["KernelCase", "compile_rival", "kernel_cases", "kernel_times"]

KernelCase = tuple[Problem, torch.dtype, str]
ROUNDS = 8
LEADING = ("lora_linear", "grouped_lora_linear", "lora_conv", "guided_ddim_step", "merge_lora",
           "transfer_loss", "guided_ddpm_step")  # fmt: skip
FROM_THE_HOST = ("torch eager", "torch, merged per expert", "peft", "torch.compile")
"""Ways of grouped layers that copy indices to the device, which no graph can hold."""


def kernel_cases(on: torch.device) -> Iterator[KernelCase]:
    """The first size of every operation in bfloat16, then in float32, then the other sizes."""
    found = list(problems(on))
    firsts = [next(p for p in found if p.name == name) for name in LEADING]
    rest = [p for p in found if p not in firsts]
    for group in (firsts, rest):
        for dtype in (torch.bfloat16, torch.float32) if on.type == "cuda" else (torch.float32,):
            for what in PASSES:
                for case in group:
                    if what == "forward" or what in _backward_passes(case):
                        yield case, dtype, what


def _backward_passes(case: Problem) -> tuple[str, ...]:
    if case.trained:
        return PASSES[1:]
    return () if case.name == "merge_lora" else PASSES[1:2]


def compile_rival(case: KernelCase, on: torch.device) -> None:
    """Fill the caches on disk with what torch makes of an operation."""
    problem, dtype, what = case
    for way in problem.ways:
        if way.name == "torch.compile":
            with precision("tf32"):
                prepared(problem, way, dtype, what, on)[0]()


def kernel_times(record: Record, sizes: Sizes, deadline: Deadline) -> None:
    """Every case there is time for; a way that is wrong is not timed."""
    on = sizes.on
    with (
        precision("tf32"),
        torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096),
    ):
        for problem, dtype, what in kernel_cases(on):
            kind = str(dtype).removeprefix("torch.").replace("float32", "tf32")
            name = f"{problem.name} {problem.shape}, {what}, {kind}"
            if deadline.left <= 0:
                record.leave_out(name, "no time left")
                continue
            found: dict[str, dict[str, Any]] = {}
            given = _drawn_once(problem)
            eager = next(way for way in problem.ways if way.name == "torch eager")
            reference, _ = prepared(given, eager, dtype, what, on)
            for way in problem.ways:
                if what in way.passes and deadline.left > 0:
                    run = partial(_row, given, way, dtype, what, sizes, reference)
                    row = record.attempt(f"{way.name}: {name}", run)
                    if row is not None:
                        found[way.name] = row
            for way_name, row in found.items():
                record.add({"operation": problem.name, "shape": problem.shape, "pass": what,
                            "mode": kind, "way": way_name, **row})  # fmt: skip
            said = [f"{w} {r['us']:.0f}/{r['graph_us'] or 0:.0f}" for w, r in found.items()]
            print(f"  {name}: {', '.join(said)} us")
            for way_name, row in found.items():
                if "graph_failed" in row:
                    print(f"  NO GRAPH of {way_name}: {row['graph_failed'][:160]}")


def _drawn_once(problem: Problem) -> Problem:
    """The same problem, whose inputs are drawn by the first way and kept for the others."""
    kept = cache(problem.make)

    def make(dtype: torch.dtype, on: torch.device) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in kept(dtype, on).items()}

    return replace(problem, make=make)


def _row(
    problem: Problem,
    way: Way,
    dtype: torch.dtype,
    what: str,
    sizes: Sizes,
    reference: Callable[[], Any],
) -> dict[str, Any]:
    on = sizes.on
    function, gate = prepared(problem, way, dtype, what, on)
    if dtype != torch.float32 or on.type == "cpu":
        gate()  # TF32 is judged among the checks, by its own limit
    rounds = min(ROUNDS, sizes.rounds)
    pairs, peak = pairs_of(function, reference, on, rounds)
    captured_us: dict[str, Any] = {"graph_us": None}
    if _capturable(problem, way):
        captured_us = _as_graph(function, on, rounds)
    return {
        "us": round(statistics.median(pairs.own) * 1e6, 2),
        "eager_us": round(statistics.median(pairs.reference) * 1e6, 2),
        **pairs.figures(3),
        "peak_mib": round(peak, 1),
        **captured_us,
    }


def _capturable(problem: Problem, way: Way) -> bool:
    grouped = problem.name == "grouped_lora_linear"
    return not (grouped and way.name.startswith(FROM_THE_HOST))


def _as_graph(function: Callable[[], Any], on: torch.device, rounds: int) -> dict[str, Any]:
    """Microseconds without the host's share; None, and why, where no graph can be captured."""
    try:
        replay = captured(function) if on.type == "cuda" else function
        pairs, _ = pairs_of(replay, replay, on, max(1, rounds // 2))
    except RuntimeError as error:
        return {"graph_us": None, "graph_failed": one_line(error)}
    return {"graph_us": round(statistics.median(pairs.own) * 1e6, 2)}


def captured(function: Callable[[], Any]) -> Callable[[], Any]:
    """A call as a CUDA graph."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), as_captured():
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
