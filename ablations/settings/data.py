"""Labelled data: Fashion-MNIST, found wherever it is, and scenes, rendered when they are needed.

Labelled arms and reference statistics need them, and nothing else does.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ablations.errors import UserError
from ablations.settings.rendering.composition import draw_scenes
from ablations.settings.rendering.renderer import Rendered, render

__all__ = ["TRAINING_SCENES", "LabelledImages", "load_fashion", "load_scenes"]

Split = Literal["train", "test"]
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}
IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
TRAINING_SCENES = 40_000
SCENES = {"train": (0, TRAINING_SCENES), "test": (10**9, 10_000)}
"""First seed and number of each split."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes:
        images: (N, 1, 32, 32) uint8, the 28x28 originals with two pixels of black around.
        labels: (N,) int64 in 0..9.
        source: where they were found, for the record.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return len(self.labels)


def load_fashion(split: Split) -> LabelledImages:
    """The training (40 000) or test (10 000) split.

    Looks in ``$PPAP_DATA``, the Debian package's folder, a cache under
    ``$XDG_CACHE_HOME/ppap``, then downloads: torchvision's mirrors, Debian's archive.

    Raises:
        UserError: if it is nowhere to be had, or a file is not what it should be.
    """
    folder, source = _find_folder()
    image_file, label_file, count = FILES[split]
    images = _read_idx(folder, image_file, IMAGE_MAGIC).reshape(-1, 1, 28, 28)
    labels = _read_idx(folder, label_file, LABEL_MAGIC)
    if len(images) != count or len(labels) != count:
        raise UserError(
            f"{folder}: {split} split has {len(images)} images and {len(labels)} labels, "
            f"expected {count}",
            "delete the folder, or point PPAP_DATA at an intact Fashion-MNIST",
        )
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return LabelledImages(padded, labels.astype(np.int64), source)


def load_scenes(split: Split, count: int | None = None) -> Rendered:
    """The first scenes of the training (40 000) or test (10 000) split; about 1000 a second.

    Raises:
        ValueError: for more scenes than the split has.
    """
    first, size = SCENES[split]
    count = size if count is None else count
    if count > size:
        raise ValueError(f"the {split} split has {size} scenes, not {count}")
    return render(draw_scenes(range(first, first + count)))


def _find_folder() -> tuple[Path, str]:
    override = os.environ.get("PPAP_DATA")
    if override:
        for folder in (Path(override), Path(override) / "fashion-mnist"):
            if _is_whole(folder):
                return folder, f"PPAP_DATA ({folder.name})"
        raise UserError(
            f"PPAP_DATA={override} holds no Fashion-MNIST",
            f"put {', '.join(name for pair in FILES.values() for name in pair[:2])} "
            "(or their .gz) there, or unset PPAP_DATA",
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppap"
    torchvision_folder = cache / "torchvision" / "FashionMNIST" / "raw"
    debian_folder = cache / "debian" / SYSTEM_FOLDER.relative_to("/")
    known = {
        SYSTEM_FOLDER: f"Debian package {DEBIAN_PACKAGE}, installed",
        torchvision_folder: "torchvision's mirror",
        debian_folder: f"Debian package {DEBIAN_PACKAGE}, downloaded",
    }
    for folder, source in known.items():
        if _is_whole(folder):
            return folder, source
    failures = []
    for fetch, folder in (
        (_fetch_torchvision, torchvision_folder),
        (_fetch_debian, debian_folder),
    ):
        try:
            fetch(cache)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{known[folder]}: {error}".splitlines()[0])
        if _is_whole(folder):
            return folder, known[folder]
    raise UserError(
        "Fashion-MNIST was not found and could not be downloaded (" + "; ".join(failures) + ")",
        f"install Debian's {DEBIAN_PACKAGE}, or set PPAP_DATA to a folder with its four files",
    )


def _is_whole(folder: Path) -> bool:
    return all(
        (folder / name).exists() or (folder / f"{name}.gz").exists()
        for pair in FILES.values()
        for name in pair[:2]
    )


def _read_idx(folder: Path, name: str, magic: int) -> npt.NDArray[np.uint8]:
    plain = folder / name
    try:
        if plain.exists():
            raw = plain.read_bytes()
        else:
            raw = gzip.decompress(plain.with_name(f"{name}.gz").read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{plain} cannot be read: {error}", "replace the file") from error
    found, count = struct.unpack(">II", raw[:8]) if len(raw) >= 8 else (0, 0)
    header = 16 if magic == IMAGE_MAGIC else 8
    size = count * (28 * 28 if magic == IMAGE_MAGIC else 1)
    if found != magic or len(raw) != header + size:
        raise UserError(f"{plain} is not a whole Fashion-MNIST IDX file", "replace the file")
    return np.frombuffer(raw, np.uint8, offset=header)


def _fetch_torchvision(cache: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(cache / "torchvision"), download=True)


def _fetch_debian(cache: Path) -> None:
    """Download the package and unpack it below the cache; needs apt-get but not root."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise RuntimeError("this is not a Debian system")
    with tempfile.TemporaryDirectory() as scratch:
        download = ["apt-get", "download", "-qq", DEBIAN_PACKAGE]
        if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
            # Package lists may be absent on a fresh machine; root can fetch them.
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
            result = subprocess.run(
                download, cwd=scratch, capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise RuntimeError(f"apt-get download failed: {result.stderr.strip()[:200]}")
        package = next(Path(scratch).glob("*.deb"))
        target = Path(scratch) / "unpacked"
        subprocess.run(["dpkg", "-x", str(package), str(target)], check=True, capture_output=True)
        destination = cache / "debian"
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(target, destination, dirs_exist_ok=True)
