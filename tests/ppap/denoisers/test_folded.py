"""FoldedUNet: half the resolution inside, full resolution where pixels are drawn."""

from __future__ import annotations

import pytest
import torch

from ppap.denoisers.folded import FoldedUNet
from ppap.denoisers.unet import UNetModel


def unet(in_channels: int = 12, out_channels: int = 32) -> UNetModel:
    return UNetModel(
        image_size=4,
        in_channels=in_channels,
        model_channels=32,
        out_channels=out_channels,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1,),
    )


def test_it_starts_at_zero_and_learns_everywhere() -> None:
    torch.manual_seed(0)
    network = FoldedUNet(3, unet(), features=8)
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    assert torch.equal(network(x_t, t), torch.zeros_like(x_t))

    torch.nn.init.normal_(network.draw.weight)
    network(x_t, t).square().sum().backward()
    first = network.unet.input_blocks[0][0]
    for layer in (first, network.unet.out[-1], network.stem, network.blend, network.draw):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


def test_each_pixel_is_drawn_by_the_same_filter() -> None:
    """With a U-Net of nothing, a shift by one pixel shifts the output: there is no grid."""
    torch.manual_seed(0)
    network = FoldedUNet(1, unet(in_channels=4), features=8)
    last = network.unet.out[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    torch.nn.init.normal_(network.draw.weight)
    x_t, t = torch.randn(1, 1, 16, 16), torch.tensor([300])
    shifted = network(x_t.roll((1, 1), dims=(2, 3)), t)
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(shifted[inside], network(x_t, t).roll((1, 1), dims=(2, 3))[inside])


def test_a_unet_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="need a U-Net from 12 to 32 channels, got one from 4"):
        FoldedUNet(3, unet(in_channels=4), features=8)
