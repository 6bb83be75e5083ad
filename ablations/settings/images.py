"""Labelled images from files: folders of classes, CIFAR-10's batches."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ablations.errors import UserError
from ablations.settings.setting import Split
from ppap.files.images import places_of
from ppap.files.pictures import PictureError, read_picture

__all__ = ["ImageFolder", "load_cifar"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


class ImageFolder:
    """Labelled images in a folder per class, decoded and cropped when they are indexed.

    Centre-cropped to squares and resized as openai/guided-diffusion's ``center_crop_arr``
    does: halved by box filters while that leaves more than twice the size, then bicubic.

    Args:
        files: of all images.
        labels: (N,) int64.
        size: of the square images, in pixels.
    """

    def __init__(self, files: Sequence[Path], labels: Tensor, size: int) -> None:
        self.files = files
        self.labels = labels
        self.size = size

    @classmethod
    def of(cls, folder: Path, size: int | None, classes: int | None = None) -> ImageFolder:
        """The folder's classes in alphabetical order, which for ImageNet is that of the labels.

        A class is a folder that holds images, itself or in folders of its own. What is hidden,
        such as ``.ipynb_checkpoints``, and files that are no images are passed over.

        Args:
            folder: of the folders of classes.
            size: of the square images, in pixels.
            classes: how many there must be, so that none that is empty or too many shifts the
                labels of those after it; None takes what there is.

        Raises:
            UserError: if there is no such folder, nothing in it, or another number of classes.
        """
        every = [_images_below(path) for path in _visible(folder) if path.is_dir()]
        found = [images for images in every if images]
        if not found:
            raise UserError(
                f"no labelled images at {folder}",
                "put ImageNet's folders of classes there, or set PPAP_DATA to what holds imagenet/",
            )
        if classes is not None and len(found) != classes:
            raise UserError(
                f"{folder} holds images of {len(found)} classes, not of {classes}",
                "put one folder of images for each class there, and nothing else",
            )
        assert size is not None
        labels = [label for label, images in enumerate(found) for _ in images]
        return cls([path for images in found for path in images], torch.tensor(labels), size)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """(B, 3, size, size) uint8."""
        places = places_of(chosen, len(self)).tolist()
        if not places:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        return torch.stack([self._read(self.files[place]) for place in places])

    def _read(self, path: Path) -> Tensor:
        try:
            image = read_picture(path)
        except PictureError as error:
            raise UserError(str(error), "mend or delete that file") from error
        while min(image.size) >= 2 * self.size:
            half = (image.width // 2, image.height // 2)
            image = image.resize(half, Image.Resampling.BOX)
        scale = self.size / min(image.size)
        wide, high = (round(side * scale) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        cropped = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(cropped)).movedim(-1, 0)


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, in alphabetical order, but for what is hidden."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    found = []
    for path in _visible(folder):
        if path.is_dir():
            found += _images_below(path)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return found


def load_cifar(folder: Path, split: Split) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as published for Python: images (N, 3, 32, 32) uint8 and labels (N,)."""
    base = folder / "cifar-10-batches-py"
    names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = [], []
    for name in names:
        try:
            with (base / name).open("rb") as file:
                held = _ArrayUnpickler(file, encoding="bytes").load()
            images.append(torch.from_numpy(held[b"data"].reshape(-1, 3, 32, 32)))
            labels += held[b"labels"]
        except (OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(
                f"no CIFAR-10 at {base} ({error})", f"unpack {CIFAR_URL} there, or set PPAP_DATA"
            ) from error
    return torch.cat(images), torch.tensor(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and nothing that could run."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)
