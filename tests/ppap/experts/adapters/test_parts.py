"""Parts that own copies of the network's parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases, Full, Head, Norms, Part
from tests.ppap.networks import TinyResNet


def test_linear_probing_moves_the_last_layer_alone() -> None:
    network = TinyResNet()
    adapter = Adapter((Head(),))
    own = {k: v + 1 for k, v in adapter.create(network, torch.Generator()).items()}
    base = dict(network.named_parameters())
    changed = {k for k, v in adapter.effective(base, own).items() if not torch.equal(v, base[k])}
    assert changed == {"fc.weight", "fc.bias"}
    assert adapter.buffers(network) == {}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Biases(), {"bn1.bias", "layer1.bn1.bias", "layer1.downsample.0.bias",
                    "layer1.downsample.1.bias"}),
        (Norms(), {"bn1.weight", "bn1.bias", "layer1.bn1.weight", "layer1.bn1.bias"}),
        (Head(), {"fc.weight", "fc.bias"}),
    ],
)  # fmt: skip
def test_parts_own_what_the_released_code_trains(part: Part, expected: set[str]) -> None:
    assert set(part.create(TinyResNet(), torch.Generator())) == expected


def test_no_bias_is_left_out_by_an_empty_pattern() -> None:
    network = TinyResNet()
    biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    generator = torch.Generator().manual_seed(0)
    assert set(Biases("").create(network, generator)) == biases
    assert set(Biases().create(network, generator)) == biases - {"fc.bias"}


def test_biases_of_recurrent_layers_are_biases() -> None:
    network = nn.ModuleDict({"rnn": nn.LSTM(4, 3, bidirectional=True), "cell": nn.GRUCell(4, 3)})
    own = Biases().create(network, torch.Generator())
    assert set(own) == {
        "rnn.bias_ih_l0", "rnn.bias_hh_l0", "rnn.bias_ih_l0_reverse", "rnn.bias_hh_l0_reverse",
        "cell.bias_ih", "cell.bias_hh",
    }  # fmt: skip
    base = dict(network.named_parameters())
    moved = {name: value + 1 for name, value in own.items()}
    for name, value in Adapter((Biases(),)).effective(base, moved).items():
        torch.testing.assert_close(value, base[name] + (name in own))
    alone = Biases().create(nn.GRU(4, 3, bias=True), torch.Generator())
    assert set(alone) == {"bias_ih_l0", "bias_hh_l0"}


class Sharing(nn.Module):
    """A head whose weight is an embedding's, and two norms with one weight and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)
        self.before, self.after = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.head.weight = self.embed.weight
        self.after.weight, self.after.bias = self.before.weight, self.before.bias


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Head(), {"embed.weight", "head.bias"}),
        (Norms("^after$"), {"before.weight", "before.bias"}),
        (Norms("^(before|after)$"), {"before.weight", "before.bias"}),
    ],
)
def test_what_another_layer_shares_is_trained_by_the_name_that_it_has_first(
    part: Part, expected: set[str]
) -> None:
    network, adapter = Sharing(), Adapter((part,))
    own = {k: v + 1 for k, v in adapter.create(network, torch.Generator()).items()}
    base = dict(network.named_parameters())
    changed = {k for k, v in adapter.effective(base, own).items() if not torch.equal(v, base[k])}
    assert changed == set(own) == expected


def test_a_weight_that_is_computed_is_trained_by_what_it_is_computed_from() -> None:
    network = TinyResNet()
    parametrizations.weight_norm(network.fc)
    computed_from = {f"fc.parametrizations.weight.original{number}" for number in (0, 1)}
    own = Head().create(network, torch.Generator())
    assert set(own) == {"fc.bias"} | computed_from


def test_whole_numbers_are_not_trained() -> None:
    network = TinyResNet()
    network.order = nn.Parameter(torch.arange(3), requires_grad=False)
    network.waves = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    named = {name for name, _ in network.named_parameters()}
    assert set(Full().create(network, torch.Generator())) == named - {"order"}
