"""Networks that the embedded settings share, small enough for two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from ppap.denoisers.unet import UNetModel

__all__ = ["Evaluator", "small_resnet", "small_unet"]


def small_unet(
    in_channels: int,
    out_channels: int,
    width: int,
    multipliers: Sequence[float],
    norm_groups: int | None = None,
    classes: int | None = None,
) -> UNetModel:
    """An ADM U-Net for 32x32 images folded to 16x16: one block a level, attention at the lowest.

    Args:
        in_channels: of the folded images.
        out_channels: of its output, folded likewise.
        width: channels of the first level.
        multipliers: of the width, one a level.
        norm_groups: of every group norm; ADM's 32 by default, which in a network this narrow are
            one or two channels each and take their means and scales away.
        classes: that it is conditional on; None for an unconditional one.
    """
    network = UNetModel(
        image_size=16,
        in_channels=in_channels,
        model_channels=width,
        out_channels=out_channels,
        num_res_blocks=1,
        attention_resolutions=(4,),
        channel_mult=multipliers,
        num_head_channels=32,
        use_scale_shift_norm=True,
        num_classes=classes,
    )
    if norm_groups is not None:
        for layer in network.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.num_groups = norm_groups
    return network


def small_resnet(in_channels: int, classes: int, width: int = 16) -> ResNet:
    """A four-stage ResNet of basic blocks with the usual small-image stem (3x3, stride 1).

    Args:
        in_channels: of the images.
        classes: width of its last layer.
        width: channels of its first stage; the last has four times as many.
    """
    channels = (width, 3 * width // 2, 3 * width, 4 * width)
    network = ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes=classes, in_chans=in_channels, channels=channels
    )
    network.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.layer1 = nn.Sequential(BasicBlock(width, width))
    return network


class Evaluator(nn.Module):
    """A plain convolutional network: the independent judge of class, and the feature extractor.

    Args:
        in_channels: C of the images.
        classes: K, width of its last layer.

    Attributes:
        FEATURES: width of the features that FID, KID, precision and recall are taken on.
    """

    FEATURES = 64

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()

        def stage(*widths: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for before, after in pairwise(widths):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)]
                layers += [nn.ReLU()]
            return layers

        self.trunk = nn.Sequential(
            *stage(in_channels, 16, 24),
            nn.MaxPool2d(2),
            *stage(24, 48, 48),
            nn.MaxPool2d(2),
            *stage(48, 96, self.FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(self.FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> (B, 64) features."""
        return cast(Tensor, self.trunk(images))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> (B, K) logits."""
        return cast(Tensor, self.head(self.features(images)))
