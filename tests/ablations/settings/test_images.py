"""Labelled images from files: cropped, and never code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from ablations.errors import UserError
from ablations.settings.images import ImageFolder, load_cifar


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


def painted(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 20), grey).save(path)


def test_what_is_hidden_empty_or_no_image_is_no_class_and_no_image(tmp_path: Path) -> None:
    painted(tmp_path / "n1" / "a.JPEG", 50)
    painted(tmp_path / "n2" / "images" / "b.png", 150)  # as in Tiny ImageNet
    painted(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png", 9)
    painted(tmp_path / "n2" / ".trash" / "c.png", 9)
    (tmp_path / "n1" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "n1" / "._a.JPEG").write_bytes(b"Mac OS X")
    (tmp_path / "n1" / "notes.txt").write_text("no image")
    (tmp_path / "__pycache__").mkdir()
    images = ImageFolder.of(tmp_path, 16, classes=2)
    assert images.labels.tolist() == [0, 1]
    assert images[:].float().mean((1, 2, 3)).round().tolist() == [50, 150]


def test_a_class_without_images_or_one_too_many_shifts_no_label(tmp_path: Path) -> None:
    painted(tmp_path / "n2" / "a.png", 9)
    (tmp_path / "n1").mkdir()
    with pytest.raises(UserError, match="images of 1 classes, not of 2"):
        ImageFolder.of(tmp_path, 16, classes=2)
    painted(tmp_path / "n1" / "b.png", 9)
    painted(tmp_path / "backup" / "b.png", 9)
    with pytest.raises(UserError, match="images of 3 classes, not of 2"):
        ImageFolder.of(tmp_path, 16, classes=2)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    painted(tmp_path / "n1" / "a.png", 9)
    (tmp_path / "n1" / "b.jpg").write_bytes(b"not found")
    with pytest.raises(UserError, match=r"b\.jpg cannot be read .*mend or delete"):
        ImageFolder.of(tmp_path, 16)[:]


def test_a_pickle_with_code_is_no_cifar(tmp_path: Path) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "test_batch").write_bytes(pickle.dumps({b"data": Path(), b"labels": []}))
    with pytest.raises(UserError, match="no CIFAR-10"):
        load_cifar(tmp_path, "test")
