"""Networks are found in whatever holds them, and put into evaluation mode and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import pytest
from torch import Tensor, nn

from ppap.compute.modules import Networks, evaluating
from ppap.predictors.predictor import Predictor

GLOBAL = nn.Sequential(nn.Dropout())


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def method(self, x: Tensor) -> Tensor:
        return x


class Hiding(nn.Module):
    """Keeps networks where PyTorch does not look, so that they are not saved with it."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


def hooked(layer: nn.Module, network: Callable[[Tensor], Any]) -> nn.Module:
    layer.register_forward_hook(lambda layer, given, found: found + network(given[0]))
    return layer


def names_a_global(x: Tensor) -> Any:
    return GLOBAL(x)


def closes_over(network: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: network(x) + 0


HOLDERS: dict[str, Callable[[nn.Module], object]] = {
    "itself": lambda network: network,
    "a closure": closes_over,
    "a closure in a closure": lambda network: closes_over(closes_over(network)),
    "a default": lambda network: lambda x, network=network: network(x),
    "a partial function": lambda network: functools.partial(closes_over(network)),
    "an argument of a partial function": lambda network: functools.partial(print, network),
    "slots": Slotted,
    "a method": lambda network: Slotted(network).method,
    "a list in a dictionary": lambda network: Slotted({"models": [network]}),
    "a function in a module": lambda network: Predictor(closes_over(network)),
    "a list in a module": lambda network: Hiding([network]),
    "a dictionary in a module": lambda network: Hiding({"frozen": network}),
    "a hook": lambda network: hooked(nn.Identity(), closes_over(network)),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_a_network_is_found_where_it_is_held(holder: Callable[[nn.Module], object]) -> None:
    network = nn.Sequential(nn.Dropout())
    held = holder(network)
    assert network in {part for module in Networks(held).modules for part in module.modules()}
    with evaluating(held):
        assert not network.training
        assert not network[0].training
    assert network.training
    assert network[0].training


def test_a_network_that_a_function_names_is_found() -> None:
    with evaluating(names_a_global):
        assert not GLOBAL.training
    assert GLOBAL.training


def test_every_part_finds_its_own_mode_again() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    network[1].eval()
    network[1][0].train()
    before = [part.training for part in network.modules()]
    with evaluating(network[1], network), evaluating(network[1][0]):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == before


def test_a_module_with_a_mode_of_its_own_is_asked_to_change_it() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            super().train(mode)
            return self

    network = Merging(1, 1)
    with evaluating(network):
        assert network.merged
    assert not network.merged


def test_an_error_restores_the_mode() -> None:
    network = nn.Dropout()
    with pytest.raises(RuntimeError, match="half-way"), evaluating(network):
        raise RuntimeError("half-way")
    assert network.training


def test_the_last_of_several_threads_restores_the_mode() -> None:
    network, together = nn.Dropout(), Barrier(2, timeout=60)

    @contextmanager
    def held(first: bool) -> Iterator[None]:
        with evaluating(network):
            together.wait()
            yield
        if first:
            together.wait()

    def leaves_first() -> None:
        with held(first=True):
            pass

    def stays() -> bool:
        with held(first=False):
            together.wait()
            return network.training

    with ThreadPoolExecutor(2) as pool:
        pool.submit(leaves_first)
        assert pool.submit(stays).result() is False
    assert network.training
