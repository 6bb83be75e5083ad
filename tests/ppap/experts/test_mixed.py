"""Networks of which the grouped pass makes another function are run expert by expert."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms, Part
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import images

COUNT = 6
TIMESTEPS = torch.tensor([10, 900, 20, 800, 999, 0])


class Base(nn.Module):
    """A stem, two layers of eight features, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix1 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.lin1, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.mix1(self.stem(x).tanh()).tanh().mean((2, 3))
        return self.head(self.lin1(hidden).tanh())


class Repeated(Base):
    """Calls a layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix1(self.mix1(self.stem(x).tanh()).tanh()).tanh().mean((2, 3))
        return self.head(self.lin1(self.lin1(x).tanh()).tanh())


class TwoNames(Base):
    """Registers a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.mix2, self.lin2 = self.mix1, self.lin1

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix2(self.mix1(self.stem(x).tanh()).tanh()).tanh().mean((2, 3))
        return self.head(self.lin2(self.lin1(x).tanh()).tanh())


class TiedWeight(TwoNames):
    """Has two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.lin2 = nn.Linear(8, 8)
        self.lin2.weight = self.lin1.weight


class ReadsWeights(Base):
    """Reads a layer's weight instead of calling it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix1(self.stem(x).tanh()).tanh().mean((2, 3))
        return self.head(F.linear(x, self.lin1.weight, self.lin1.bias).tanh())


class Encoder(Base):
    """Has a layer whose evaluation goes another way than its training."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix1(self.stem(x).tanh()).flatten(2).transpose(1, 2)
        return self.head(self.lin1(tokens).mean(1))


class TokensFirst(Base):
    """Has as many tokens as the batch has images, and puts them first."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix1(self.stem(x).tanh()).flatten(2)[:, :, :COUNT].permute(2, 0, 1)
        return self.head(self.lin1(tokens).tanh().mean(0))


class Hooked(Base):
    """Keeps a layer's output by a hook that knows the network it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.mix1.register_forward_hook(lambda layer, x, out: self.kept.update(mix=out))

    def forward(self, x: Tensor) -> Tensor:
        self.mix1(self.stem(x).tanh())
        return self.head(self.lin1(self.kept["mix"].tanh().mean((2, 3))).tanh())


class Uncopyable(Base):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = (value for value in ())


SAME = (Base, Repeated, TwoNames)
OTHER = (Hooked, TiedWeight, ReadsWeights, Encoder, TokensFirst, Uncopyable)
PARTS: dict[str, tuple[Part, ...]] = {
    "lora": (Lora(2, 2.0, "(mix|lin)[12]"),),
    "lora and biases": (Biases(""), Lora(2, 2.0, "(mix|lin)[12]")),
}


def bank_around(make: Callable[[], nn.Module], parts: tuple[Part, ...], moved: bool) -> ExpertBank:
    torch.manual_seed(0)
    bank = ExpertBank(Predictor(make().double().eval()), 3, Adapter(parts)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in bank.experts.parameters() if moved else ():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bank


def one_by_one(bank: ExpertBank, x: Tensor) -> Tensor:
    rows = range(len(x))
    return torch.cat([bank(x[i : i + 1], TIMESTEPS[i : i + 1]) for i in rows])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("make", [*SAME, *OTHER])
def test_a_mixed_batch_is_its_samples_one_by_one(
    make: Callable[[], nn.Module], parts: str, training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bank = bank_around(make, PARTS[parts], moved=True).train(training)
    x = images(COUNT).double().requires_grad_()
    with caplog.at_level(logging.WARNING, "ppap"):
        mixed = bank(x, TIMESTEPS)
    apart = one_by_one(bank, x)
    torch.testing.assert_close(mixed, apart, atol=1e-12, rtol=1e-12)
    probe = torch.arange(mixed.numel()).cos().view_as(mixed).double()
    gradients = [torch.autograd.grad((y * probe).sum(), x)[0] for y in (mixed, apart)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)
    lines = [line for line in caplog.messages if "grouped pass" in line]
    assert len(lines) <= (make in OTHER)


@pytest.mark.parametrize("make", SAME)
def test_networks_that_can_be_grouped_are(make: Callable[[], nn.Module]) -> None:
    bank = bank_around(make, PARTS["lora"], moved=True).eval()
    bank(images(COUNT).double(), TIMESTEPS)
    assert bank._mixed.grouped is not None
    assert not bank._mixed.check.dropped


@pytest.mark.parametrize("make", [ReadsWeights, TiedWeight])
def test_untrained_experts_do_not_hide_the_difference(make: Callable[[], nn.Module]) -> None:
    bank = bank_around(make, PARTS["lora"], moved=False).train()
    bank(images(COUNT).double(), TIMESTEPS).square().sum().backward()
    trained = [bank.expert(number).named_parameters() for number in (0, 2)]
    gradients = [p.grad for own in trained for name, p in own if "lin1/lora_B" in name]
    assert len(gradients) == 2
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_a_layer_that_is_replaced_is_used() -> None:
    bank = bank_around(Base, PARTS["lora"], moved=True).eval()
    x = images(COUNT).double()
    before = bank(x, TIMESTEPS)
    bank.predictor.network.head = nn.Linear(8, 5).double()
    after = bank(x, TIMESTEPS)
    torch.testing.assert_close(after, one_by_one(bank, x), atol=1e-12, rtol=1e-12)
    assert (after - before).abs().max() > 1e-2


class Tempered(Base):
    """Divides by an attribute, and may count its calls."""

    temperature = 1.0
    calls: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.calls is not None:
            self.calls += 1
        return super().forward(x) / self.temperature


def test_an_attribute_that_changes_is_used() -> None:
    bank = bank_around(Tempered, PARTS["lora"], moved=True).eval()
    x = images(COUNT).double()
    before = bank(x, TIMESTEPS)
    bank.predictor.network.temperature = 2.0
    torch.testing.assert_close(2 * bank(x, TIMESTEPS), before)
    assert not bank._mixed.check.dropped


def test_a_network_that_counts_its_calls_is_not_grouped(caplog: pytest.LogCaptureFixture) -> None:
    bank = bank_around(Tempered, PARTS["lora"], moved=True).eval()
    bank.predictor.network.calls = 0
    x = images(COUNT).double()
    torch.testing.assert_close(bank(x, TIMESTEPS), one_by_one(bank, x))
    grouped = bank._mixed
    bank(x, TIMESTEPS)
    assert bank._mixed is grouped
    assert "changes calls in every call" in caplog.text


def test_comparing_leaves_batch_statistics_and_the_random_stream_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )
    banks = [
        ExpertBank(Predictor(network.eval()), 2, Adapter((Norms("1"), Lora(2, 2.0, "4")))).train()
        for _ in range(2)
    ]
    found = []
    for bank, compared in zip(banks, (True, False), strict=True):
        if not compared:
            bank._mixed.check._compared |= {False, True}
        torch.manual_seed(1)
        found.append(bank(images(COUNT), TIMESTEPS))
    assert torch.equal(*found)
    for one, other in zip(*(bank.experts.buffers() for bank in banks), strict=True):
        assert torch.equal(one, other)
