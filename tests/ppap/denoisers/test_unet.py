"""What the golden figures of the U-Net family do not cover: errors and gradient checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from ppap.denoisers.blocks import timestep_embedding
from ppap.denoisers.classifier import EncoderUNetModel
from ppap.denoisers.diffusers_models import ImageUNet
from ppap.denoisers.unet import UNetModel

SMALL: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
}


def small_diffusers_unet(**options: Any) -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **options,
    ).eval()


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_are_integers_of_any_width(dtype: torch.dtype) -> None:
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), torch.tensor([0, 3])
    torch.manual_seed(0)
    for network in (
        UNetModel(**SMALL, out_channels=3, num_classes=4),
        ImageUNet(small_diffusers_unet(num_class_embeds=4)),
    ):
        assert torch.equal(network(x, t, y.to(dtype)), network(x, t, y))
        assert network(x, t, y[1:].to(dtype)).shape == x.shape


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (torch.tensor([0, 4]), "label 4 is none of the 4 classes"),
        (torch.tensor([0, -1]), "label -1 is none"),
        (torch.tensor([0.0, 1.0]), "integers from 0 to 3, got torch.float32"),
        (torch.eye(4)[:2].long(), r"got torch.int64 \(2, 4\)"),
        (None, "labels y go with"),
    ],
)
def test_labels_that_there_are_not_are_refused(labels: Any, why: str) -> None:
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    for network in (
        UNetModel(**SMALL, out_channels=3, num_classes=4),
        ImageUNet(small_diffusers_unet(num_class_embeds=4)),
    ):
        with pytest.raises(ValueError, match=why):
            network(x, t, labels)
    with pytest.raises(ValueError, match="labels y go with"):
        ImageUNet(small_diffusers_unet())(x, t, torch.tensor([0]))


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="adaptive, attention"):
        EncoderUNetModel(**SMALL, out_channels=3, pool="mean")
