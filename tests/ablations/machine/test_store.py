"""Artifacts: present means whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ablations.machine.store import Artifact, DamagedArtifactError, Store

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
def test_a_damaged_artifact_is_never_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    store.put(KEY, artifact())
    path = Path(store.path(KEY))
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    path.write_bytes({"flip": raw, "cut": raw[:-3], "empty": b""}[damage])
    with pytest.raises(DamagedArtifactError, match="recomputed"):
        store.get(KEY)
    assert not store.holds(KEY)
    assert not path.exists()
    assert str(path) in capsys.readouterr().err


def test_what_is_absent_is_not_held(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.holds(KEY)
    with pytest.raises(FileNotFoundError):
        store.get(KEY)


def test_a_half_written_artifact_is_invisible(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = Path(store.path(KEY)).parent
    folder.mkdir()
    (folder / f"{KEY}.artifact.123.part").write_bytes(b"half")
    assert not store.holds(KEY)
    (left,) = store.contents()
    assert left.key == ""
    assert left.size == 4


def test_facts_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, artifact())
    Path(store.path(KEY)).write_bytes(b"\xff" * 100)
    with pytest.raises(DamagedArtifactError):
        store.meta(KEY)


def test_a_relative_folder_is_the_same_for_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("store").url == str(tmp_path / "store")


def test_a_file_that_goes_while_the_store_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.put(KEY, artifact())
    going = Path(store.path(KEY) + ".lease")
    going.touch()
    real = store.files.modified

    def modified(path: str) -> object:
        going.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(store.files, "modified", modified)
    assert [found.key for found in store.contents()] == [KEY]


def test_any_file_system_will_do() -> None:
    store = Store("memory://somewhere/store")
    store.put(KEY, artifact())
    assert store.holds(KEY)
    assert store.find("ab") == [KEY]
    assert store.find("cd") == []
    np.testing.assert_array_equal(store.get(KEY).arrays["images"], artifact().arrays["images"])
    assert store.meta(KEY) == {"scale": 4.0}
    assert [found.key for found in store.contents()] == [KEY]
    with store.files.open(store.path(KEY), "wb") as file:
        file.write(b"damaged")
    assert not store.holds(KEY)
    assert store.find() == []
