"""A module run with other weights computes with them and keeps its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppap.compute.stateless import run_with


class Shared(nn.Module):
    """A layer under two names, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third, self.fourth = nn.Linear(3, 3), nn.Linear(3, 3)
        self.fourth.weight = self.third.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fourth(self.third(self.second(self.first(x).tanh()).tanh()).tanh())


def test_a_layer_with_two_names_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = dict(module.named_parameters())
    run_with(module, {name: 2 * value for name, value in state.items()}, x)
    assert dict(module.named_parameters()) == state
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_shared_weights_are_replaced_everywhere() -> None:
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 3)
    doubled = {name: 2 * value.detach() for name, value in module.named_parameters()}
    found = run_with(module, doubled, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    assert torch.equal(found, module(x))


def test_weights_that_are_left_out_are_the_modules_own() -> None:
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 3)
    assert torch.equal(run_with(module, {}, x), module(x))
    third = torch.eye(3)
    found = run_with(module, {"third.weight": third}, x)
    module.third.weight.data = third
    assert torch.equal(found, module(x))
