"""The paper's adapter and others as a whole."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.func import functional_call

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Norms
from tests.ppap.networks import TinyResNet, images


@pytest.mark.parametrize(
    ("architecture", "rank", "trained", "share"),
    [
        ("resnet50", 16, 1_459_632, 0.0571),
        ("resnet50", 8, 754_456, 0.0295),
        ("deit_small_patch16_224", 16, 494_824, 0.0224),
        ("deit_small_patch16_224", 8, 273_640, 0.0124),
    ],
)
def test_trainable_parameters_are_the_published_ones(
    architecture: str, rank: int, trained: int, share: float
) -> None:
    network = timm.create_model(architecture)
    own = ppap_adapter(rank).create(network, torch.Generator())
    count = sum(tensor.numel() for tensor in own.values())
    assert count == trained
    assert count / sum(p.numel() for p in network.parameters()) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter((Lora(2, 1.0, r"conv1$|fc$"),)),
        Adapter((Biases(),)),
        Adapter((Norms(),)),
        Adapter((Full(),)),
        ppap_adapter(2),
    ],
)
def test_a_fresh_adapter_changes_nothing(adapter: Adapter) -> None:
    network = TinyResNet().eval()
    own = adapter.create(network, torch.Generator().manual_seed(1))
    weights = adapter.effective(dict(network.named_parameters()), own)
    torch.testing.assert_close(
        functional_call(network, weights, (images(3),)), network(images(3)), rtol=0, atol=1e-6
    )


def test_parts_do_not_touch_each_others_tensors() -> None:
    network = TinyResNet()
    adapter = ppap_adapter(2)
    own = adapter.create(network, torch.Generator())
    base = dict(network.named_parameters())
    for key in own:
        own[key] = own[key] + 1
    changed = {k for k, v in adapter.effective(base, own).items() if not torch.equal(v, base[k])}
    assert changed == {
        "conv1.weight",
        "layer1.conv1.weight",
        *Biases().create(network, torch.Generator()),
        *Norms().create(network, torch.Generator()),
    }
