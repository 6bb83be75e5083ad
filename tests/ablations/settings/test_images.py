"""Labelled images from files: cropped, mirrored, and never code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from ablations.errors import UserError
from ablations.settings.images import ImageFolder, Mirrored, load_cifar


def test_images_are_cropped_to_their_middle_and_read_as_they_are_wanted(tmp_path: Path) -> None:
    for number, colour in enumerate([(250, 10, 10), (10, 250, 10)]):
        folder = tmp_path / f"n{number}"
        folder.mkdir()
        image = Image.new("RGB", (96, 40), (0, 0, 255))
        image.paste(colour, (28, 0, 68, 40))
        image.save(folder / "0.png")
    images = ImageFolder.of(tmp_path, 16)
    assert images.shape == (2, 3, 16, 16)
    assert images.labels.tolist() == [0, 1]
    middle = images[torch.tensor([1, 0, 1])][:, :, 4:12, 4:12].float().mean((2, 3))
    expected = torch.tensor([[10, 250, 10], [250, 10, 10], [10, 250, 10]])
    assert (middle - expected).abs().max() < 2
    assert torch.equal(images[:1], images[torch.tensor([0])])
    with pytest.raises(UserError, match="no labelled images"):
        ImageFolder.of(tmp_path / "n0", 16)


def test_mirrored_images_follow_the_others() -> None:
    plain = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    mirrored = Mirrored(plain)
    assert mirrored.shape == (4, 1, 3, 4)
    assert torch.equal(mirrored[torch.tensor([3, 0])], torch.stack([plain[1].flip(-1), plain[0]]))
    assert torch.equal(mirrored[1:3], torch.stack([plain[1], plain[0].flip(-1)]))


def test_a_pickle_with_code_is_no_cifar(tmp_path: Path) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "test_batch").write_bytes(pickle.dumps({b"data": Path(), b"labels": []}))
    with pytest.raises(UserError, match="no CIFAR-10"):
        load_cifar(tmp_path, "test")
