"""What an interrupted cell keeps: beside its artifact's place, wherever the store is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.machine.kept import Kept
from ablations.machine.store import Store


@pytest.fixture(params=["local", "elsewhere"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "store" if request.param == "local" else f"memory://{tmp_path.name}")


def test_what_one_run_keeps_another_finds_until_it_is_removed(store: Store) -> None:
    with Kept(store, "0123") as first:
        first.save()  # nothing yet
        assert not first.path.exists()
        for content in (b"one", b"two"):
            first.path.parent.mkdir(parents=True, exist_ok=True)
            first.path.write_bytes(content)
            first.save()
    with Kept(store, "0123") as second:
        assert second.path.read_bytes() == b"two"
        (kept,) = store.contents()
        assert kept.path.endswith("0123.artifact.kept.safetensors")
        assert kept.key == ""  # garbage, to those who collect it
        second.remove()
    assert not list(store.contents())
    with Kept(store, "0123") as third:
        assert not third.path.exists()
