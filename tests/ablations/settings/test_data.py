"""Fashion-MNIST is found where it is, and refused where it is not whole."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ablations.errors import UserError
from ablations.settings import data
from ablations.settings.data import load_fashion


def write(folder: Path, compressed: bool, counts: tuple[int, int] = (60_000, 10_000)) -> None:
    for (images, labels, _), count in zip(data.FILES.values(), counts, strict=True):
        parts = {
            images: struct.pack(">IIII", 2051, count, 28, 28) + bytes(count * 784),
            labels: struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count)),
        }
        for name, content in parts.items():
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_folder_of_the_users_is_read_and_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    write(tmp_path, compressed)
    monkeypatch.setenv("PPAP_DATA", str(tmp_path))
    found = load_fashion("test")
    assert found.images.shape == (10_000, 1, 32, 32)
    assert found.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert found.labels.dtype == np.int64
    assert "PPAP_DATA" in found.source


def test_an_empty_folder_names_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPAP_DATA", str(tmp_path))
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        load_fashion("train")


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"short", mtime=0)])
def test_a_damaged_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    write(tmp_path, compressed=True)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    monkeypatch.setenv("PPAP_DATA", str(tmp_path))
    with pytest.raises(UserError, match="t10k-images"):
        load_fashion("test")


def test_a_short_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, compressed=False, counts=(60_000, 9))
    monkeypatch.setenv("PPAP_DATA", str(tmp_path))
    with pytest.raises(UserError, match="9 images"):
        load_fashion("test")


def test_nowhere_to_be_had_is_one_line_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(cache: Path) -> None:
        raise RuntimeError("no network")

    monkeypatch.delenv("PPAP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "SYSTEM_FOLDER", Path("/usr/nowhere"))
    monkeypatch.setattr(data, "_fetch_torchvision", fails)
    monkeypatch.setattr(data, "_fetch_debian", fails)
    with pytest.raises(UserError, match="no network") as caught:
        load_fashion("train")
    assert "\n" not in str(caught.value)
    assert "PPAP_DATA" in caught.value.mend
