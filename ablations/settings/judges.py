"""Judges that are surer than any predictor, and encoders that know no labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Autoencoder", "Ensemble", "ResidualJudge"]


class _Block(nn.Module):
    """A pre-activation residual block (arXiv 1603.05027)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        changes = stride != 1 or before != after
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        return cast(Tensor, self.skip(h if self.conv1.stride[0] > 1 else x)) + self.conv2(
            F.relu(self.norm2(self.conv1(h)))
        )


class ResidualJudge(nn.Module):
    """A wide residual network of three resolutions, two blocks each.

    Args:
        in_channels: of the images.
        classes: K, width of its last layer.
        widths: of the stages.
        features: width of the layer before the last.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        widths: Sequence[int] = (32, 64, 128),
        features: int = 32,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((widths[0], *widths))):
            blocks += [_Block(before, after, 2 if number else 1), _Block(after, after, 1)]
        self.blocks = nn.Sequential(*blocks, nn.BatchNorm2d(widths[-1]), nn.ReLU())
        self.narrow = nn.Linear(widths[-1], features)
        self.head = nn.Linear(features, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> (B, features)."""
        pooled = self.blocks(self.stem(images)).mean((2, 3))
        return F.relu(cast(Tensor, self.narrow(pooled)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> (B, K) logits."""
        return cast(Tensor, self.head(self.features(images)))


class Ensemble(nn.Module):
    """Several judges as one: their mean probabilities, and the features of all.

    Args:
        members: networks with ``features`` and ``head``, trained apart.
    """

    def __init__(self, members: Sequence[ResidualJudge]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> (B, D), the members' features side by side."""
        return torch.cat([cast(ResidualJudge, m).features(images) for m in self.members], dim=1)

    def head(self, features: Tensor) -> Tensor:
        """(B, D) features -> (B, K) logarithms of the members' mean probabilities."""
        parts = features.chunk(len(self.members), dim=1)
        logits = [
            cast(ResidualJudge, member).head(part).log_softmax(1)
            for member, part in zip(self.members, parts, strict=True)
        ]
        return torch.stack(logits).logsumexp(0) - torch.tensor(float(len(logits))).log()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images in [-1, 1] -> (B, K) logarithms of probabilities."""
        return self.head(self.features(images))


class Autoencoder(nn.Module):
    """A convolutional autoencoder: features of images that no label has shaped.

    Args:
        channels: of the 32x32 images.
        features: width of the code.
        width: of the first stage.
    """

    def __init__(self, channels: int, features: int = 64, width: int = 32) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        down: list[nn.Module] = []
        for before, after in pairwise(widths):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.SiLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(16 * widths[-1], features))
        up: list[nn.Module] = [
            nn.Linear(features, 16 * widths[-1]), nn.Unflatten(1, (widths[-1], 4, 4))
        ]  # fmt: skip
        for before, after in pairwise(reversed(widths)):
            up += [nn.BatchNorm2d(before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.decoder = nn.Sequential(*up)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, 32, 32) images in [-1, 1] -> (B, features)."""
        return cast(Tensor, self.encoder(images))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, 32, 32) images in [-1, 1] -> the same, from their codes."""
        return cast(Tensor, self.decoder(self.features(images)))
