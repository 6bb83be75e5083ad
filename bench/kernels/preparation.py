"""What is timed of an operation, and the gate that it passes first."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from ppap_kernels.operations import Problem, Way
from torch import Tensor

__all__ = ["TOLERANCE", "prepared"]

TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Largest difference from float64, as a share of the largest value."""


def prepared(
    case: Problem, way: Way, dtype: torch.dtype, what: str, on: torch.device
) -> tuple[Callable[[], Any], Callable[[], None]]:
    """What is timed, and the gate before it."""
    tensors = case.make(dtype, on)
    wanted: list[str] = []
    if what != "forward":
        wanted = ["x", *(case.trained if what == "full backward" else ())]
        for name in wanted:
            tensors[name].requires_grad_()
    like = case.reference(tensors).detach()
    probe = _probe(like.shape, like.device, like.dtype)

    def run(compute: Callable[[dict[str, Tensor]], Tensor], given: dict[str, Tensor]) -> Any:
        if not wanted:
            with torch.no_grad():
                return [compute(given)]
        found = compute(given)
        owned = way.owns(given) if compute is way.run else given
        inputs = [owned[name] for name in wanted]
        return torch.autograd.grad(found, inputs, probe.to(found.dtype), allow_unused=True)

    def gate() -> None:
        if not way.comparable:
            return
        exact = {
            name: value.detach().double() if value.is_floating_point() else value
            for name, value in tensors.items()
        }
        for name in wanted:
            exact[name].requires_grad_()
        ours, theirs = run(way.run, tensors), run(case.reference, exact)
        for found, expected in zip(ours, theirs, strict=True):
            apart = (found.double() - expected).abs().max() / expected.abs().max()
            assert apart <= TOLERANCE[dtype], f"{way.name} is off by {apart:.1e} of the largest"

    return lambda: run(way.run, tensors), gate


@lru_cache(maxsize=2)  # all ways of a case want the same, and millions of draws take a while
def _probe(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
