"""LoRA in loralib's form: shapes, scaling, what it refuses."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Norms
from tests.ppap.networks import TinyResNet


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
