"""Images with their mirror images: the paper trains on random horizontal flips."""

from __future__ import annotations

import torch
from torch import Tensor

from ppap.files.images import Images, places_of

__all__ = ["Mirrored", "with_mirror_images"]


class Mirrored:
    """Images, and after them their mirror images, flipped when they are asked for.

    An image drawn evenly from these is one of the plain images, flipped with probability 1/2.

    Args:
        images: (N, C, H, W) uint8.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2 * len(self.images)

    @property
    def shape(self) -> torch.Size:
        """(2 N, C, H, W)."""
        return torch.Size((len(self), *self.images.shape[1:]))

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """(B, C, H, W) uint8."""
        places = places_of(chosen, len(self))
        found = self.images[places % len(self.images)]
        mirrored = (places >= len(self.images))[:, None, None, None]
        return torch.where(mirrored.to(found.device), found.flip(-1), found)


def with_mirror_images(targets: Tensor) -> Tensor:
    """Targets (2 N, ...) of images and then of their mirror images; maps (N, H, W) are flipped."""
    return torch.cat([targets, targets.flip(-1) if targets.ndim > 2 else targets])
