"""Images in a folder: shards of bytes that are written once, and read a few at a time.

A folder holds ``images.json``, which says what the images are, and one NPY file
``00000000-00001024.npy`` for each run of images, named by the first place and the one beyond the
last. A shard is written beside its place and renamed, so one that is there is whole. Processes
that share a folder take turns: each shard has a lock while it is made, which ends with its process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ppap.files.checkpoints import CheckpointError, plain_number

__all__ = ["ImageShards", "claim_folder", "claimed_shard", "shard_bounds", "write_shard"]

MANIFEST = "images.json"
Bytes = npt.NDArray[np.uint8]


def shard_bounds(count: int, size: int) -> list[tuple[int, int]]:
    """First place, and the one beyond the last, of every shard of ``count`` images."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def claim_folder(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Make the folder, or see that it holds the same images.

    Args:
        folder: of the shards.
        manifest: what the images are; written to the folder if it is new.

    Raises:
        CheckpointError: if the folder holds other images, or anything else.
    """
    path = folder / MANIFEST
    written = json.dumps(manifest, default=plain_number)
    wanted = json.loads(written)  # tuples become lists, as in the file
    if not path.exists():
        others = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        if any(not name.startswith(MANIFEST) for name in others) and not path.exists():
            raise CheckpointError(f"{folder} has files but no {MANIFEST}; name an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        turn = folder / f"{MANIFEST}.lock"
        with FileLock(turn):  # of several processes one writes it
            if not path.exists():
                scratch = folder / f"{MANIFEST}.part"
                scratch.write_text(json.dumps(wanted, indent=2) + "\n")
                scratch.replace(path)
            turn.unlink(missing_ok=True)  # whoever locks a new file in its place finds it written
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); name another folder") from error
    other = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    if other:
        said = "; ".join(f"{key} {found.get(key)!r}, not {wanted.get(key)!r}" for key in other)
        raise CheckpointError(f"{folder} holds other images ({said}); name another folder")


@contextmanager
def claimed_shard(folder: Path, bounds: tuple[int, int]) -> Iterator[bool]:
    """Whether this process may make a shard: not while another is at it.

    Args:
        folder: of the shards.
        bounds: of the shard.
    """
    path = folder / f"{_name(bounds)}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # whoever locks a new file in its place finds the shard whole
        lock.release()


def write_shard(folder: Path, bounds: tuple[int, int], images: Tensor) -> None:
    """Write the (B, C, H, W) uint8 images of one shard: beside its place, then renamed."""
    path = folder / _name(bounds)
    scratch = path.with_suffix(".npy.part")
    with scratch.open("wb") as file:
        np.save(file, images.numpy())
    scratch.replace(path)


class ImageShards:
    """The images of a folder, (N, C, H, W) uint8; only what is asked for is read.

    Args:
        folder: of the shards.
        count: N; further images that the folder may hold are left out.
        shape: (C, H, W) of one image.
        size: images per shard, but for the last.
    """

    def __init__(self, folder: Path, count: int, shape: tuple[int, int, int], size: int) -> None:
        self.folder = folder
        self.shape = torch.Size((count, *shape))
        self.size = size
        self._maps: dict[int, Bytes] = {}

    def missing(self) -> list[tuple[int, int]]:
        """Bounds of the shards that are not written yet, or of which a crash left only a part."""
        every = shard_bounds(len(self), self.size)
        return [bounds for bounds in every if not self.is_whole(bounds)]

    def is_whole(self, bounds: tuple[int, int]) -> bool:
        """Whether the shard of these bounds is written."""
        try:
            self._opened(bounds[0] // self.size)
        except CheckpointError:
            return False
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: int | slice | Tensor) -> Tensor:
        """(B, C, H, W) of a slice of the images or of (B,) int64 places from 0 to N - 1.

        A mask (N,) gives the images where it is true, as of a tensor. A single place gives its
        image (C, H, W), as a ``DataLoader`` asks for them; one below 0 is counted from the end.

        Raises:
            IndexError: for a place outside.
            TypeError: for what is none of these.
            CheckpointError: for a shard that is missing or damaged.
        """
        if isinstance(chosen, slice):
            places = np.arange(*chosen.indices(len(self)))
        elif isinstance(chosen, Tensor) and chosen.ndim:
            places = self._places(chosen.cpu())
        else:
            place = range(len(self))[chosen]
            return self[place : place + 1][0]
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"places run from 0 to {len(self) - 1}, got {places.tolist()}")
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        shards = places // self.size
        for number in np.unique(shards):
            rows = shards == number
            found[rows] = self._map(int(number))[places[rows] % self.size]
        return torch.from_numpy(found)

    def _places(self, chosen: Tensor) -> npt.NDArray[Any]:
        if chosen.dtype == torch.bool and chosen.shape == self.shape[:1]:
            chosen = chosen.nonzero()[:, 0]
        whole = not chosen.is_floating_point() and chosen.dtype != torch.bool
        if chosen.ndim != 1 or not whole:
            raise TypeError(
                f"images are chosen by whole numbers (B,) or a mask ({len(self)},), got "
                f"{chosen.dtype} of shape {tuple(chosen.shape)}"
            )
        return chosen.numpy()

    def _map(self, number: int) -> Bytes:
        if number not in self._maps:
            self._maps[number] = self._opened(number)
        return self._maps[number]

    def _opened(self, number: int) -> Bytes:
        bounds = shard_bounds(len(self), self.size)[number]
        path = self.folder / _name(bounds)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CheckpointError(f"{path} is missing or damaged; synthesize again") from error
        if mapped.dtype != np.uint8 or mapped.shape != (bounds[1] - bounds[0], *self.shape[1:]):
            raise CheckpointError(
                f"{path} holds {mapped.dtype} of shape {mapped.shape}; "
                "delete it and synthesize again"
            )
        return np.asarray(mapped)


def _name(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]:08d}-{bounds[1]:08d}.npy"
