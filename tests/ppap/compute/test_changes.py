"""Every way in which weights change is noticed, and nothing else is."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ppap.compute.changes import Watch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def watched(module: nn.Module) -> Callable[[], list[torch.Tensor]]:
    return lambda: [*module.parameters(), *module.buffers()]


@torch.no_grad()
def written(module: nn.Module) -> None:
    module[2].weight[0, 0] += 1e-4


@torch.no_grad()
def optimised(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(module.parameters(), 1e-3).step()


def replaced(module: nn.Module) -> None:
    module[0].weight = nn.Parameter(module[0].weight.detach() + 1)


def reloaded(module: nn.Module) -> None:
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})


def assigned(module: nn.Module) -> None:
    state = {name: value + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def converted(module: nn.Module) -> None:
    module.double()


WRITES = (written, optimised, replaced, reloaded, assigned, converted)


@pytest.mark.parametrize("change", WRITES, ids=lambda change: change.__name__)
def test_a_change_is_noticed_once(change: Callable[[nn.Module], None]) -> None:
    module, watch = network(), Watch()
    assert watch.changed(watched(module))
    assert not watch.changed(watched(module))
    change(module)
    assert watch.changed(watched(module))
    assert not watch.changed(watched(module))


@pytest.mark.parametrize("change", [written, optimised, reloaded, converted])
def test_a_glance_notices_what_is_written_to_the_tensors(
    change: Callable[[nn.Module], None],
) -> None:
    module, watch = network(), Watch()
    assert watch.changed(watched(module), thorough=False)
    assert not watch.changed(watched(module), thorough=False)
    change(module)
    assert watch.changed(watched(module), thorough=False)


def test_writes_through_data_are_noticed_by_a_thorough_look() -> None:
    module, watch = network(), Watch()
    watch.changed(watched(module))
    module[0].weight.data.mul_(0.999)
    assert watch.changed(watched(module))
    module[1].num_batches_tracked.data.add_(1)
    assert watch.changed(watched(module))
    assert not watch.changed(watched(module))


def test_values_that_change_places_are_noticed() -> None:
    module, watch = nn.Linear(4, 4), Watch()
    watch.changed(watched(module))
    module.weight.data.copy_(module.weight.flip(0))
    assert watch.changed(watched(module))
    weight, bias = module.weight[0].clone(), module.bias.clone()
    module.weight.data[0], module.bias.data[:] = bias, weight
    assert watch.changed(watched(module))


def test_the_last_bit_of_one_value_among_many_is_noticed() -> None:
    values, watch = torch.full((2**17 + 5,), 1e4), Watch()
    watch.changed(lambda: [values])
    values.data[-1] = torch.nextafter(values[-1], torch.tensor(torch.inf))
    assert watch.changed(lambda: [values])
    values.data[3] = -values[3]
    assert watch.changed(lambda: [values])
    values.data[2**16 + 1] *= -1
    assert watch.changed(lambda: [values])


def test_signs_that_change_together_are_noticed() -> None:
    values, watch = torch.linspace(0.3, 2, 64), Watch()
    watch.changed(lambda: [values])
    for first in range(0, 64, 7):
        for second in range(first + 1, 64):
            for place in (first, second):
                values.data[place] *= -1
            assert watch.changed(lambda: [values]), (first, second)


def test_weights_that_are_no_numbers_do_not_change_by_themselves() -> None:
    module, watch = network(), Watch()
    module[0].weight.data.fill_(float("nan"))
    watch.changed(watched(module))
    assert not watch.changed(watched(module))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.bool,
        torch.int8,
        torch.int64,
        torch.complex64,
    ],
)
def test_values_of_any_type_are_looked_at(dtype: torch.dtype) -> None:
    values, watch = torch.ones(5, dtype=dtype), Watch()
    assert watch.changed(lambda: [values])
    assert not watch.changed(lambda: [values])
    values.data[3] = 0
    assert watch.changed(lambda: [values])


def test_a_look_takes_twice_the_calls_for_twice_the_tensors() -> None:
    """A bank has hundreds of small tensors, which are joined to be summed."""

    def calls(count: int) -> int:
        tensors = [torch.ones(2) for _ in range(count)]
        Watch().changed(lambda: tensors)  # what is made once is made
        with cProfile.Profile() as profile:
            Watch().changed(lambda: tensors)
        return int(pstats.Stats(profile).total_calls)

    assert calls(800) < 2.1 * calls(400)
