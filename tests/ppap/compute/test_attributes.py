"""Every attribute that may decide a result is looked at, and what calls leave behind is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ppap.compute.attributes import Attributes


class Settings:
    """Of a network, as transformers keeps them."""

    def __init__(self) -> None:
        self.temperature = 1.0
        self.names = {"a": [1, 2]}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.act: nn.Module = nn.ReLU()
        self.temperature = 1.0
        self.nothing = None
        self.sizes = [(1, 2), (3, 4)]
        self.config = Settings()
        self.table = np.arange(4.0)
        self.plain = torch.ones(3)
        self.outside = [nn.Linear(2, 2)]
        self.function: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / self.temperature


def network() -> nn.Sequential:
    return nn.Sequential(Layer(), nn.Dropout(0.5))


def number(n: nn.Sequential) -> None:
    n[0].temperature = 2.0


def flag(n: nn.Sequential) -> None:
    n[0].nothing = True


def within_a_list(n: nn.Sequential) -> None:
    n[0].sizes[1] = (3, 5)


def of_a_configuration(n: nn.Sequential) -> None:
    n[0].config.temperature = 2.0


def deep_in_a_configuration(n: nn.Sequential) -> None:
    n[0].config.names["a"].append(3)


def of_an_array(n: nn.Sequential) -> None:
    n[0].table[2] = 0.0


def of_a_tensor_that_is_no_buffer(n: nn.Sequential) -> None:
    n[0].plain[0] = 2.0


def of_a_layer_outside(n: nn.Sequential) -> None:
    with torch.no_grad():
        n[0].outside[0].weight.add_(1.0)


def function(n: nn.Sequential) -> None:
    n[0].function = torch.sin


def of_a_library_layer(n: nn.Sequential) -> None:
    n[1].p = 0.1


def layer(n: nn.Sequential) -> None:
    n[0].act = nn.ReLU()


def hook(n: nn.Sequential) -> None:
    n[0].linear.register_forward_hook(lambda layer, x, out: 2 * out)


def new_name(n: nn.Sequential) -> None:
    n[0].gain = 3.0


CHANGES = (
    number, flag, within_a_list, of_a_configuration, deep_in_a_configuration, of_an_array,
    of_a_tensor_that_is_no_buffer, of_a_layer_outside, function, of_a_library_layer, layer, hook,
    new_name,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed_once(change: Callable[[nn.Sequential], None]) -> None:
    module = network()
    attributes = Attributes(module)
    assert attributes.changed()
    assert not attributes.changed()
    change(module)
    assert attributes.changed()
    assert not attributes.changed()
    assert not attributes.changed(thorough=False)


@pytest.mark.parametrize("change", [number, flag, of_a_library_layer])
def test_a_glance_notices_numbers(change: Callable[[nn.Sequential], None]) -> None:
    module = network()
    attributes = Attributes(module)
    assert attributes.changed(thorough=False)
    assert not attributes.changed(thorough=False)
    change(module)
    assert attributes.changed(thorough=False)
    assert not attributes.changed(thorough=False)


def test_a_hook_of_all_modules_is_noticed() -> None:
    attributes = Attributes(network())
    assert attributes.changed()
    hooked = register_module_forward_hook(lambda layer, x, out: None)
    try:
        assert attributes.changed()
        assert not attributes.changed()
    finally:
        hooked.remove()
    assert attributes.changed()


def test_weights_and_the_mode_are_looked_at_elsewhere() -> None:
    module = network()
    attributes = Attributes(module)
    attributes.changed()
    with torch.no_grad():
        module[0].linear.weight.add_(1.0)
    module.eval()
    module.zero_grad()
    assert not attributes.changed()


def test_an_equal_value_is_no_change() -> None:
    module = network()
    attributes = Attributes(module)
    attributes.changed()
    module[0].temperature = float("1.0")
    module[0].sizes = [(1, 2), (3, 4)]
    module[0].table = np.arange(4.0)
    assert not attributes.changed(thorough=False)
    assert not attributes.changed()


@dataclass
class Task:
    temperature: float = 1.0
    weights: Tensor = field(default_factory=lambda: torch.ones(2))

    @cached_property
    def costly(self) -> float:
        return 3.0


def raised(task: Task) -> None:
    task.temperature = 0.5


def weighed(task: Task) -> None:
    task.weights[0] = 5.0


@pytest.mark.parametrize("change", [raised, weighed])
def test_what_is_called_beside_a_network_is_looked_at(change: Callable[[Any], None]) -> None:
    task = Task()
    attributes = Attributes(network(), task)
    attributes.changed()
    change(task)
    assert attributes.changed()
    assert not attributes.changed()


class Keeping(nn.Module):
    """Keeps what it saw, as hooks for intermediate features do, and counts its calls."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts, self.calls, self.seen = counts, 0, {}
        self.size: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.counts
        self.seen["x"] = x.clone()
        self.size = tuple(x.shape)
        return x


def test_what_calls_leave_behind_is_left_out_and_counts_are_named() -> None:
    for counts in (False, True):
        module = Keeping(counts)
        attributes = Attributes(module)
        attributes.changed()
        module(torch.ones(2))
        attributes.settle()  # the size is set once and for all
        module(torch.ones(2))
        assert attributes.settle() == ["calls"] * counts
        module(torch.ones(2))
        assert attributes.changed() == counts
        assert attributes.settle() == []


class Annealed:
    """A loss that counts its calls in one of its attributes, and keeps what it saw in another."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}
        self.progress = [0]
        self.factor = 1.0

    def loss(self, x: Tensor) -> Tensor:
        self.seen["x"] = x.clone()
        self.progress[0] += 1
        return x.sum() * self.progress[0] * self.factor


def test_counts_of_what_is_called_beside_a_network_are_named() -> None:
    annealed = Annealed()
    attributes = Attributes(network(), annealed)
    attributes.changed()
    for _ in range(3):
        annealed.loss(torch.ones(2))
        assert attributes.settle() == ["progress"]
    assert not attributes.changed()
    annealed.factor = 2.0
    assert attributes.changed(thorough=False)


def test_what_an_object_computes_once_is_no_change() -> None:
    task = Task()
    attributes = Attributes(network(), task)
    attributes.changed()
    assert task.costly
    assert not attributes.changed()
    task.added = 1  # type: ignore[attr-defined]
    assert attributes.changed()


def test_things_that_hold_each_other_are_looked_at_once() -> None:
    module = network()
    module[0].config.owner = module
    module[0].config.itself = module[0].config
    attributes = Attributes(module)
    attributes.changed()
    assert not attributes.changed()
    module[0].config.temperature = 3.0
    assert attributes.changed()


GAIN = 1.0
TABLE = torch.ones(2)
INNER: nn.Module = nn.Linear(2, 2)


def named(x: Tensor) -> Tensor:
    """What it reads stands in this file."""

    def scaled(x: Tensor) -> Tensor:
        return TABLE * x

    return GAIN * scaled(INNER(x))


class Naming:
    """A task whose method reads what stands in this file."""

    power = 1

    def log_likelihood(self, prediction: Tensor) -> Tensor:
        return GAIN * prediction.sum(1) ** self.power


def closing(
    gain: float, inner: nn.Module
) -> tuple[Callable[[Tensor], Tensor], Callable[..., None]]:
    """A function, and another that changes what it closes over."""

    def call(x: Tensor) -> Tensor:
        return gain * inner(x)

    def change(**values: Any) -> None:
        nonlocal gain, inner
        gain, inner = values.get("gain", gain), values.get("inner", inner)

    return call, change


@pytest.mark.parametrize("name", ["GAIN", "TABLE", "INNER"])
def test_what_a_function_names_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"GAIN": 2.0, "TABLE": torch.ones(2), "INNER": nn.Linear(2, 2)}
    attributes = Attributes(nn.Flatten(), partial(named))
    attributes.changed()
    assert not attributes.changed()
    monkeypatch.setitem(globals(), name, values[name])
    assert attributes.changed()
    assert not attributes.changed()


def test_what_a_function_closes_over_is_noticed() -> None:
    call, change = closing(1.0, nn.Sequential(nn.Linear(2, 2)))
    module = nn.Module()
    module.network = call  # type: ignore[assignment]
    attributes, inner = Attributes(module), nn.Sequential(nn.Linear(2, 2))
    attributes.changed()
    for values in ({"gain": 2.0}, {"inner": inner}):
        change(**values)
        assert attributes.changed()
        assert not attributes.changed()
    inner[0] = nn.Linear(2, 2)
    assert attributes.changed()
    inner[0].weight = nn.Parameter(torch.ones(2, 2))
    assert attributes.changed()
    assert not attributes.changed()


def test_what_a_class_has_and_its_methods_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = Attributes(nn.Flatten(), Naming())
    attributes.changed()
    assert not attributes.changed()
    monkeypatch.setitem(globals(), "GAIN", 2.0)
    assert attributes.changed()
    monkeypatch.setattr(Naming, "power", 2)
    assert attributes.changed()
    monkeypatch.setattr(Naming, "log_likelihood", lambda self, prediction: prediction)
    assert attributes.changed()
    assert not attributes.changed()


def test_a_copy_looks_anew() -> None:
    attributes = Attributes(network())
    attributes.changed()
    other = copy.deepcopy(attributes)
    assert not attributes.changed()
    assert other.changed()
    assert not other.changed()
    assert other.changes == attributes.changes + 1
