"""A module run with other weights computes with them and keeps its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

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


class Counting(nn.Module):
    """Writes into buffers in training: a spectral norm's, and a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.norm = nn.InstanceNorm1d(3, track_running_stats=True)
        self.register_buffer("calls", torch.zeros(()))
        self.same = nn.Module()
        self.same.register_buffer("calls", self.calls)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.norm(self.layer(x)) * self.same.calls


@pytest.mark.parametrize("given", ["", "calls", "layer.bias"])
def test_what_layers_write_in_training_is_not_kept(given: str) -> None:
    torch.manual_seed(0)
    module, x = Counting().train(), torch.randn(2, 3, 3)
    whole = dict(module.named_parameters()) | dict(module.named_buffers())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: value for name, value in whole.items() if name == given}
    first = run_with(module, state, x)
    assert torch.equal(run_with(module, state, x), first)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module(x), first)  # a count of 1, and one iteration from the same vectors


def test_buffers_that_are_replaced_are_written_in_place() -> None:
    module, statistics = nn.BatchNorm1d(3).train(), torch.zeros(3)
    run_with(module, {"running_mean": statistics}, torch.ones(2, 3))
    torch.testing.assert_close(statistics, torch.full((3,), 0.1))
    assert torch.equal(module.running_mean, torch.zeros(3))
    assert int(module.num_batches_tracked) == 0


class Recomputing(nn.Module):
    """A layer that is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self._computed, x, use_reentrant=False)
        return found

    def _computed(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


def test_layers_that_are_computed_again_are_refused_where_a_gradient_is_wanted() -> None:
    module, x = Recomputing(), torch.randn(2, 3)
    state = {name: 2 * value.detach() for name, value in module.named_parameters()}
    with pytest.raises(ValueError, match="Recomputing computes layers again in the backward pass"):
        run_with(module, state, x.requires_grad_())
    with torch.no_grad():
        assert torch.equal(run_with(module, state, x), torch.func.functional_call(module, state, x))


def test_what_keeps_tensors_elsewhere_may_be_around_a_call() -> None:
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 3, requires_grad=True)
    state = {name: 2 * value.detach() for name, value in module.named_parameters()}
    (expected,) = torch.autograd.grad(run_with(module, state, x).sum(), x)
    with save_on_cpu():
        (found,) = torch.autograd.grad(run_with(module, state, x).sum(), x)
    assert torch.equal(found, expected)


class Keeping(nn.Module):
    """Keeps a table made of its weight as long as it is in one mode, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.inner = nn.Dropout(0.0)
        self.kept: list[Tensor] = []

    def train(self, mode: bool = True) -> Keeping:
        self.kept = []
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.kept or [2 * self.weight]
        found: Tensor = self.inner(x * self.kept[0])
        return found


def test_what_layers_keep_of_their_weights_is_of_those_in_use() -> None:
    module, x = Keeping().eval(), torch.randn(2, 3)
    module.inner.train()
    own = module(x)
    with torch.no_grad():
        assert torch.equal(run_with(module, {"weight": 4 * module.weight}, x), 4 * own)
        assert torch.equal(module(x), own)
    assert not module.training
    assert module.inner.training
