"""A network without its batch norms computes what it did with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ablations.settings import fashion
from ppap.compute.folding import FoldedNetwork
from tests.ppap.networks import images, tiny_predictor


@pytest.mark.parametrize("make", [fashion.resnet, tiny_predictor])
def test_folded_batch_norms_change_nothing(make: Callable[[], nn.Module]) -> None:
    network = make()
    network = getattr(network, "network", network)
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.2, 2, generator=generator)
    network = network.double().eval()
    folded = FoldedNetwork(network)
    norms = [name for name, layer in network.named_modules() if type(layer) is nn.BatchNorm2d]
    assert [norm for _, norm in folded.folded] == norms
    assert not any(type(layer) is nn.BatchNorm2d for layer in folded.network.modules())
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    channels = 1 if make is fashion.resnet else 3
    x = torch.randn(3, channels, 16, 16, dtype=torch.float64, generator=generator)
    found = torch.func.functional_call(folded.network, folded.weights(state), (x,))
    torch.testing.assert_close(found, network(x), atol=1e-10, rtol=1e-10)


def test_options_that_nobody_gives_are_what_they_are_by_default() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, shift: Tensor | None = None, features: bool = False) -> Tensor:
            x = self.norm(self.conv(x))
            if shift is not None:
                x = x + shift
            return x if features else x.mean((2, 3))

    network = Optional().eval()
    folded = FoldedNetwork(network)
    assert folded.folded == [("conv", "norm")]
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    found = torch.func.functional_call(folded.network, folded.weights(state), (images(2),))
    torch.testing.assert_close(found, network(images(2)))


def test_what_is_computed_of_a_buffer_follows_it() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.log_temperature: Tensor
            self.register_buffer("log_temperature", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).mean((2, 3)) / self.log_temperature.exp()

    network = Tempered().eval()
    folded = FoldedNetwork(network)
    assert folded.folded == [("conv", "norm")]
    network.log_temperature.fill_(1)
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    found = torch.func.functional_call(folded.network, folded.weights(state), (images(2),))
    torch.testing.assert_close(found, network(images(2)))


def test_norms_that_cannot_be_folded_stay() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.norm(x) + x

    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            return x if x.sum() > 0 else -x

    for network in (Branching().eval(), Deciding().eval()):
        folded = FoldedNetwork(network)
        assert folded.folded == []
        state = dict(network.named_parameters()) | dict(network.named_buffers())
        found = torch.func.functional_call(folded.network, folded.weights(state), (images(2),))
        torch.testing.assert_close(found, network(images(2)))
