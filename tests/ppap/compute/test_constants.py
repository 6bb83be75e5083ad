"""Constants of a graph for a GPU; the device ``meta`` stands for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppap.compute.constants import settle_constants
from ppap.compute.tracing import Traced

TABLE = torch.linspace(0, 1, 10, dtype=torch.float64)


def kept_table(x: Tensor) -> Tensor:
    return x * TABLE.to(device=x.device, dtype=torch.float32)[:4]


def made_table(x: Tensor) -> Tensor:
    low, high = torch.chunk(torch.arange(8, dtype=torch.float32).neg().exp(), 2)
    return x * low.to(x.device) + high.to(x.device)


def number(x: Tensor) -> Tensor:
    return x * torch.tensor(0.5)


def filled_mask(x: Tensor) -> Tensor:
    mask = torch.zeros(4)
    mask[1:3] = 1.0
    return x * mask.to(x.device)


def own_noise(x: Tensor) -> Tensor:
    return x + torch.rand(4).to(x.device)


@pytest.mark.parametrize("function", [kept_table, made_table, number])
def test_nothing_is_made_or_kept_on_the_cpu(function: Callable[[Tensor], Tensor]) -> None:
    """A copy from there fails within a CUDA graph."""
    x = torch.ones(4, device="meta")
    traced = Traced(lambda weights, x: [function(x) * weights[0]], ([x], x), frozen=True)
    assert {buffer.device.type for buffer in traced.buffers()} == {"meta"}
    made = [node.meta["val"] for node in traced.graph.graph.nodes if node.op == "call_function"]
    assert {value.device.type for value in made} == {"meta"}
    assert traced(x)[0].shape == (4,)


@pytest.mark.parametrize("function", [kept_table, made_table, number, filled_mask, own_noise])
def test_values_stay(function: Callable[[Tensor], Tensor]) -> None:
    graph = make_fx(function)(torch.ones(4))
    settle_constants(graph)
    graph.recompile()
    for x in (torch.ones(4), torch.arange(4.0)):
        torch.manual_seed(0)
        expected = function(x)
        torch.manual_seed(0)
        assert torch.equal(graph(x), expected)


@pytest.mark.parametrize(("function", "calls"), [(kept_table, 1), (made_table, 2), (number, 1)])
def test_only_what_depends_on_an_input_is_computed_in_a_call(
    function: Callable[[Tensor], Tensor], calls: int
) -> None:
    graph = make_fx(function)(torch.ones(4))
    settle_constants(graph)
    assert sum(node.op == "call_function" for node in graph.graph.nodes) == calls
