"""Mirror images follow the plain ones, and maps are flipped with their images."""

from __future__ import annotations

import torch

from ppap.files.mirroring import Mirrored, with_mirror_images


def test_mirrored_images_follow_the_others() -> None:
    plain = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    mirrored = Mirrored(plain)
    assert mirrored.shape == (4, 1, 3, 4)
    assert torch.equal(mirrored[torch.tensor([3, 0])], torch.stack([plain[1].flip(-1), plain[0]]))
    assert torch.equal(mirrored[1:3], torch.stack([plain[1], plain[0].flip(-1)]))


def test_maps_are_mirrored_with_their_images_and_classes_stay() -> None:
    classes = torch.tensor([3, 1])
    assert with_mirror_images(classes).tolist() == [3, 1, 3, 1]
    maps = torch.arange(12).view(1, 3, 4)
    assert torch.equal(with_mirror_images(maps), torch.cat([maps, maps.flip(2)]))
