"""Parts that own copies of the network's parameters."""

from __future__ import annotations

import pytest
import torch

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases, Head, Norms, Part
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
