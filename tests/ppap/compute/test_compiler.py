"""What inductor is told when a function is compiled on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppap.compute import compiler
from ppap.compute.compiler import just_in_time


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Of every compilation, the tag of its look-up and whether it draws as eager code does."""
    found: list[tuple[str, bool]] = []

    def backend(graph: Callable[..., Any], examples: list[torch.Tensor]) -> Callable[..., Any]:
        draws = torch._inductor.config.fallback_random
        found.append((torch.compiler.config.cache_key_tag, draws))
        return graph

    lookup = torch._dynamo.lookup_backend
    watched = {"inductor": backend}
    monkeypatch.setattr(
        torch._dynamo, "lookup_backend", lambda name: watched.get(name) or lookup(name)
    )
    return found


def test_code_is_looked_up_by_cpu_and_draws_as_uncompiled(
    told: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function compiled under AVX-512 and found again under AVX2 was wrong by half its values."""
    for cpu in ("AVX512", "AVX2, oneDNN AVX2"):
        monkeypatch.setattr(compiler, "instruction_set", lambda cpu=cpu: cpu)
        function = just_in_time(lambda x: x + 1)
        assert torch.equal(function(torch.ones(3)), torch.full((3,), 2.0))
        torch._dynamo.reset()
    with torch.compiler.config.patch(cache_key_tag="theirs"):
        just_in_time(lambda x: x + 1)(torch.ones(3))
    assert told == [
        ("AVX512", True), ("AVX2, oneDNN AVX2", True), ("theirs AVX2, oneDNN AVX2", True)
    ]  # fmt: skip
    assert not torch.compiler.config.cache_key_tag
    assert not torch._inductor.config.fallback_random


def test_any_number_of_functions_of_one_source_is_compiled(told: list[tuple[str, bool]]) -> None:
    """Dynamo gives up on a code object after some eight compilations (PyTorch 2.11)."""

    class Scaled(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    functions = [just_in_time(Scaled(factor)) for factor in range(4)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for factor, function in enumerate(functions):
            assert torch.equal(function(torch.ones(3)), torch.full((3,), float(factor)))
    assert len(told) == len(functions)
    torch._dynamo.reset()
