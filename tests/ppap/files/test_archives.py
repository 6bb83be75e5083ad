"""Archives of arrays come back whole, and whatever is none is refused by one error."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from ppap.files.archives import ArchiveError, read_arrays

ARRAYS = {"images": np.arange(600).reshape(20, 30) % 7, "labels": np.zeros(20, np.int64)}


def test_arrays_come_back_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)
    assert read_arrays(tmp_path / "a.npz", ["labels", "others"]).keys() == {"labels"}


def test_a_damaged_byte_is_refused_or_of_no_array(tmp_path: Path) -> None:
    """By zipfile, by zlib or by NumPy, each of which has errors of its own."""
    path, refused = tmp_path / "a.npz", 0
    np.savez_compressed(path, **ARRAYS)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            found = read_arrays(path)
        except ArchiveError:
            refused += 1
        else:
            assert all(np.array_equal(array, ARRAYS[name]) for name, array in found.items())
    assert refused > len(whole) / 6


@pytest.mark.parametrize("content", ["nothing", "one array", "text", "a picture", "objects"])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with path.open("wb") as file:
        if content == "one array":
            np.save(file, ARRAYS["images"])
        elif content == "text":
            file.write(b"images")
        elif content == "a picture":
            with ZipFile(file, "w") as archive:
                archive.writestr("images.png", "PNG")
        elif content == "objects":
            np.savez(file, images=np.array([Path()], dtype=object))
    with pytest.raises(ArchiveError, match=r"^no \.npz of arrays, or damaged \(\w+: "):
        read_arrays(path)


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="No such file"):
        read_arrays(tmp_path / "a.npz")
