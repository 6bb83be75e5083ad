"""A U-Net at half the resolution, with a stem and a head at the full one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.denoisers.unet import UNetModel

__all__ = ["FoldedUNet"]


class FoldedUNet(nn.Module):
    """An ADM U-Net on images folded twice, whose output is finished at full resolution.

    A network that sees 2x2 pixels as channels and writes them so has four independent output
    filters, one per place in the square; what they disagree in shows as a grid of two pixels.
    Here the U-Net hands features up instead, and two convolutions that see the noisy image
    beside them draw the pixels.

    Args:
        channels: of the images.
        unet: (B, 4 channels, H/2, W/2) noisy images, folded, and (B,) timesteps ->
            (B, 4 features, H/2, W/2).
        features: that each pixel gets from the U-Net, and as many from the noisy image.
    """

    def __init__(self, channels: int, unet: UNetModel, features: int) -> None:
        super().__init__()
        if unet.in_channels != 4 * channels or unet.out_channels != 4 * features:
            raise ValueError(
                f"images of {channels} channels and {features} features need a U-Net from "
                f"{4 * channels} to {4 * features} channels, got one from {unet.in_channels} to "
                f"{unet.out_channels}"
            )
        self.unet = unet
        self.stem = nn.Conv2d(channels, features, 3, padding=1)
        self.blend = nn.Conv2d(2 * features, 2 * features, 3, padding=1)
        self.draw = nn.Conv2d(2 * features, channels, 3, padding=1)
        # Zero is where the untrained output starts, so the U-Net's own last layer must not.
        cast(nn.Conv2d, unet.out[-1]).reset_parameters()
        nn.init.zeros_(self.draw.weight)
        nn.init.zeros_(cast(Tensor, self.draw.bias))

    def forward(self, x_t: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W) for (B, C, H, W) noisy images at (B,) timesteps, of (B,) labels.

        H and W are even. Labels go with a class-conditional U-Net, and only with one.
        """
        features = F.pixel_shuffle(self.unet(F.pixel_unshuffle(x_t, 2), timesteps, y), 2)
        joined = torch.cat([features, self.stem(x_t)], dim=1)
        return cast(Tensor, self.draw(F.silu(self.blend(F.silu(joined)))))
