"""Artifacts: present means whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ablations.store import Artifact, DamagedArtifactError, Store

KEY = "ab" * 12


def artifact() -> Artifact:
    return Artifact({"scale": 4.0}, {"images": np.arange(12, dtype=np.uint8).reshape(3, 4)})


def test_an_artifact_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, artifact())
    found = store.get(KEY)
    assert found.meta == {"scale": 4.0}
    np.testing.assert_array_equal(found.arrays["images"], artifact().arrays["images"])
    assert store.holds(KEY)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_artifact_is_never_used(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.put(KEY, artifact())
    raw = bytearray(store.path(KEY).read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    store.path(KEY).write_bytes({"flip": raw, "cut": raw[:-3], "empty": b""}[damage])
    with pytest.raises(DamagedArtifactError, match="recomputed"):
        store.get(KEY)
    assert not store.holds(KEY)
    assert not store.path(KEY).exists()


def test_what_is_absent_is_not_held(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.holds(KEY)
    with pytest.raises(FileNotFoundError):
        store.get(KEY)


def test_a_half_written_artifact_is_invisible(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path(KEY).parent.mkdir()
    store.path(KEY).with_name(f"{KEY}.123.part").write_bytes(b"half")
    assert not store.holds(KEY)
