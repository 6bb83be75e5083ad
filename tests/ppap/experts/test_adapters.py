"""The three parts of the paper's adapter, separately and together."""

from __future__ import annotations

from typing import Literal

import pytest
import timm
import torch
from torch import nn
from torch.func import functional_call

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms, Part
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


def test_conv_lora_is_a_convolution_of_low_rank_weights() -> None:
    # For a 1x1 convolution loralib's form is plain low rank: W + s B A, as matrices.
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(6, 4, 1))
    part = Lora(rank=2, alpha=3.0)
    own = part.create(network, torch.Generator().manual_seed(0))
    own["conv1.lora_B"] = torch.randn(4, 2)
    weights = Adapter((part,)).effective(dict(network.named_parameters()), own)
    update = weights["conv1.weight"][:, :, 0, 0] - network.conv1.weight[:, :, 0, 0]  # type: ignore[union-attr,index]
    torch.testing.assert_close(update, 1.5 * own["conv1.lora_B"] @ own["conv1.lora_A"])
    assert torch.linalg.matrix_rank(update) == 2


@pytest.mark.parametrize(("scaling", "factor"), [("corrected", 0.25), ("published", 1.0)])
def test_published_linear_layers_leave_the_scaling_out(
    scaling: Literal["corrected", "published"], factor: float
) -> None:
    network = TinyResNet()
    part = Lora(4, 1.0, r"^conv1$|fc$", linear_scaling=scaling)
    own = part.create(network, torch.Generator().manual_seed(0))
    own |= {key: torch.ones_like(own[key]) for key in ("conv1.lora_B", "fc.lora_B")}
    base = dict(network.named_parameters())
    weights = Adapter((part,)).effective(base, own)
    for layer, expected in (("fc", factor), ("conv1", 0.25)):
        update = (own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]).view_as(base[f"{layer}.weight"])
        torch.testing.assert_close(
            weights[f"{layer}.weight"], base[f"{layer}.weight"] + expected * update
        )


def test_linear_probing_moves_the_last_layer_alone() -> None:
    network = TinyResNet()
    adapter = Adapter((Head(),))
    own = {k: v + 1 for k, v in adapter.create(network, torch.Generator()).items()}
    base = dict(network.named_parameters())
    changed = {k for k, v in adapter.effective(base, own).items() if not torch.equal(v, base[k])}
    assert changed == {"fc.weight", "fc.bias"}
    assert adapter.buffers(network) == {}


def test_factors_have_loralibs_shapes() -> None:
    own = Lora(rank=2, layers=r"conv1$|fc$").create(TinyResNet(), torch.Generator())
    assert {key: tuple(value.shape) for key, value in own.items()} == {
        "conv1.lora_A": (6, 9),
        "conv1.lora_B": (18, 6),
        "layer1.conv1.lora_A": (6, 18),
        "layer1.conv1.lora_B": (24, 6),
        "fc.lora_A": (2, 8),
        "fc.lora_B": (5, 2),
    }


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


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="rank"):
        Lora(rank=0)
    with pytest.raises(ValueError, match="corrected or published"):
        Lora(linear_scaling="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers are"):
        Lora(layers="nothing").create(TinyResNet(), torch.Generator())
    with pytest.raises(ValueError, match="nothing to train"):
        Adapter((Norms("nothing"),)).create(TinyResNet(), torch.Generator())
    with pytest.raises(ValueError, match="square"):
        Lora(layers="0").create(nn.Sequential(nn.Conv2d(2, 2, (1, 3))), torch.Generator())


def test_no_bias_is_left_out_by_an_empty_pattern() -> None:
    network = TinyResNet()
    biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    generator = torch.Generator().manual_seed(0)
    assert set(Biases("").create(network, generator)) == biases
    assert set(Biases().create(network, generator)) == biases - {"fc.bias"}
