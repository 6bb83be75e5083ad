"""Whether values can be looked at: wherever they cannot, nothing may try."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ppap.compute.known import values_known


def compiled(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.compile(function, backend="eager", fullgraph=True)(x)


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    make_fx(function)(x)


def mapped(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.func.vmap(function)(x)


def on_meta(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    function(x.to("meta"))


def faked(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with FakeTensorMode() as mode:
        function(mode.from_tensor(x))


@pytest.mark.parametrize(
    "run", [compiled, traced, mapped, on_meta, faked], ids=lambda run: run.__name__
)
def test_values_are_unknown_without_a_break_in_any_graph(
    run: Callable[[Callable[[Tensor], Tensor], Tensor], None],
) -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        known = values_known(x)
        seen.append(known)
        return x + 1 if known else x - 1

    assert torch.equal(function(torch.zeros(3)), torch.ones(3))
    assert seen == [True]
    run(function, torch.zeros(3))
    assert len(seen) > 1
    assert not any(seen[1:])
