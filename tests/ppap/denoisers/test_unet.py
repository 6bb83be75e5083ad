"""What the golden figures of the U-Net family do not cover: errors and gradient checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppap.denoisers.blocks import timestep_embedding
from ppap.denoisers.classifier import EncoderUNetModel
from ppap.denoisers.unet import UNetModel

SMALL: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
}


def test_recomputing_activations_changes_nothing() -> None:
    outputs = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        network = UNetModel(**SMALL, out_channels=3, use_checkpoint=use_checkpoint)
        for parameter in network.out.parameters():
            torch.nn.init.normal_(parameter)
        x = torch.ones(1, 3, 16, 16, requires_grad=True)
        output = network(x, torch.tensor([5]))
        output.square().sum().backward()
        outputs.append((output.detach(), x.grad))
    assert torch.equal(outputs[0][0], outputs[1][0])
    torch.testing.assert_close(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_every_published_pooling_gives_logits(pool: str) -> None:
    network = EncoderUNetModel(**SMALL, out_channels=7, num_head_channels=32, pool=pool)
    assert network(torch.randn(2, 3, 16, 16), torch.tensor([1, 2])).shape == (2, 7)


def test_embedding_at_zero_is_ones_then_zeros_and_odd_widths_are_padded() -> None:
    embedded = timestep_embedding(torch.tensor([0]), 7)
    assert embedded.tolist() == [[1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_channels": 48}, "divisible by 32"),
        ({"num_head_channels": 48}, "num_head_channels"),
        ({"dims": 1}, "dims"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetModel(**{**SMALL, **change}, out_channels=3)


def test_labels_go_with_class_conditional_networks_only() -> None:
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="labels"):
        UNetModel(**SMALL, out_channels=3)(x, t, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels"):
        UNetModel(**SMALL, out_channels=3, num_classes=4)(x, t)


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="adaptive, attention"):
        EncoderUNetModel(**SMALL, out_channels=3, pool="mean")
