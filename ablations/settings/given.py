"""Images that other code has made, as they lie in files, and what each of them should show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ablations.errors import UserError
from ablations.settings.setting import Setting
from ppap.files.archives import ArchiveError, read_arrays
from ppap.files.pictures import PictureError, read_picture

__all__ = ["read_given"]

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
IMAGES, LABELS = ("images", "arr_0"), ("labels", "arr_1")
"""Names of arrays: ours, and those of OpenAI's samples."""
PICTURES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")


def read_given(path: Path, setting: Setting) -> tuple[Bytes, Labels | None]:
    """The images of an ``.npz`` file, of a folder of such, of pictures, or of folders of classes.

    Files are taken in the order of their names, in which 2 comes before 10; what is hidden is
    passed over. A folder of a class bears its name or number, and holds its pictures, itself or in
    folders of its own; an ``.npz`` holds ``images`` or ``arr_0``, bytes (N, H, W, C),
    (N, C, H, W) or (N, H, W), and may hold ``labels`` or ``arr_1``, (N,) class numbers.

    Returns:
        (N, C, H, W) bytes, and (N,) classes where they are known.

    Raises:
        UserError: for what cannot be read, of another size than the setting's images, or
            labelled in part.
    """
    parts = list(_parts(path, setting))
    if not parts:
        raise UserError(f"{path} holds no images", "name a folder of .png files, or an .npz file")
    labels = [found for _, found in parts if found is not None]
    if labels and len(labels) < len(parts):
        raise UserError(f"some files of {path} have labels, others none", "label all or none")
    images = _joined([found for found, _ in parts], path)
    classes = np.concatenate(labels) if labels else None
    known = range(len(setting.classes))
    if classes is not None and not {*classes.tolist()} <= {*known}:
        raise UserError(
            f"{path} has labels from {classes.min()} to {classes.max()}",
            f"number the classes of {setting.name} from 0 to {known[-1]}",
        )
    return images, classes


def _parts(path: Path, setting: Setting) -> Iterator[tuple[Bytes, Labels | None]]:
    if path.is_file():
        yield _archive(path, setting)
        return
    if not path.is_dir():
        raise UserError(f"there is no {path}", "name a folder of images, or an .npz file")
    entries = _visible(path)
    folders = [entry for entry in entries if entry.is_dir()]
    pictures = [entry for entry in entries if entry.suffix.lower() in PICTURES]
    archives = [entry for entry in entries if entry.suffix == ".npz"]
    if sum(map(bool, (folders, pictures, archives))) > 1:
        raise UserError(
            f"{path} holds folders, pictures and archives side by side", "keep one kind there"
        )
    for folder in folders:
        if files := list(_pictures_below(folder)):
            label = _class_of(folder, setting.classes)
            yield _pictures(files, setting), np.full(len(files), label)
    if pictures:
        yield _pictures(pictures, setting), None
    for archive in archives:
        yield _archive(archive, setting)


def _visible(folder: Path) -> list[Path]:
    """What is in a folder but for what is hidden, by name, numbers by their size."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: (_by_number(entry.name), entry.name))


def _by_number(name: str) -> list[str | int]:
    """Words and whole numbers in turn: an image called 10 is not the second of a dozen."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _pictures_below(folder: Path) -> Iterator[Path]:
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _pictures_below(entry)
        elif entry.suffix.lower() in PICTURES:
            yield entry


def _class_of(folder: Path, classes: Sequence[str]) -> int:
    if folder.name in classes:
        return classes.index(folder.name)
    if folder.name.isdecimal() and int(folder.name) < len(classes):
        return int(folder.name)
    raise UserError(
        f"{folder} bears no class's name or number", f"choose from {', '.join(classes)}"
    )


def _pictures(files: Sequence[Path], setting: Setting) -> Bytes:
    try:
        images = [np.asarray(read_picture(file)) for file in files]
    except PictureError as error:
        raise UserError(str(error), "mend or delete that file") from error
    fitting = [
        _fitting(image[None], file, setting) for image, file in zip(images, files, strict=True)
    ]
    return _joined(fitting, files[0].parent)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _joined(parts: Sequence[Bytes], path: Path) -> Bytes:
    """Images of one size, which a cascade's may have of any."""
    sizes = list(dict.fromkeys(part.shape[2:] for part in parts))
    if len(sizes) > 1:
        raise UserError(
            f"{path} has images of {_by(sizes[0])} and of {_by(sizes[1])} pixels",
            "resize them to one size",
        )
    return np.concatenate(parts)


def _archive(path: Path, setting: Setting) -> tuple[Bytes, Labels | None]:
    try:
        arrays = read_arrays(path)
    except ArchiveError as error:
        raise UserError(f"{path} is {error}", "name another file") from error
    images: Any = next((arrays[name] for name in IMAGES if name in arrays), None)
    labels: Any = next((arrays[name] for name in LABELS if name in arrays), None)
    if images is None or images.dtype != np.uint8:
        raise UserError(
            f"{path} has no bytes called {' or '.join(IMAGES)}",
            "save images in 0 to 255 as uint8 under one of these names",
        )
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise UserError(
            f"{path} has {len(images)} images and labels {labels.shape} {labels.dtype}",
            "save one class number per image",
        )
    classes = None if labels is None else labels.astype(np.int64)
    return _fitting(images, path, setting), classes


def _fitting(images: Bytes, path: Path, setting: Setting) -> Bytes:
    """(N, C, H, W) of the setting's shape."""
    channels, height, width = shape = setting.denoiser().shape
    found = images[..., None] if images.ndim == 3 else images
    if found.ndim == 4 and found.shape[1:] != shape:
        found = np.moveaxis(found, -1, 1)
    if found.ndim == 4 and channels == 1 and found.shape[1] == 3:
        if (found != found[:, :1]).any():
            raise UserError(f"{path} has colours", f"{setting.name} has grey images")
        found = found[:, :1]
    grown = setting.upsample is not None and found.ndim == 4 and found.shape[1] == channels
    if not grown and found.shape[1:] != shape:
        raise UserError(
            f"{path} has images {images.shape[1:]}",
            f"those of {setting.name} are {height} x {width} with {channels} channels",
        )
    return found
