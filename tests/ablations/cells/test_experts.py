"""An interrupted training of a cell goes on in the next run, to the same artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.cells import experts
from ablations.cells.experts import Experts
from ablations.machine.kept import Kept
from ablations.machine.pools import compute
from ablations.machine.store import Artifact, Store
from ablations.sweeps import Lab, Recipe
from ppap.experts.transfer import transfer


@pytest.fixture
def cell(lab: Lab) -> Experts:
    """Two experts, trained on shards of noise."""
    guidance = next(lab.row("two", Recipe(experts=2))).figures.scores[0].samples.guidance
    found = guidance[0].model.experts
    assert isinstance(found, Experts)
    return replace(found, training=replace(found.training, steps=6, batch=4))


def store_of(folder: Path, cell: Experts) -> Store:
    store = Store(folder)
    for shard in cell.data.shards:
        pixels = np.random.default_rng(0).integers(256, size=(shard.count, 1, 32, 32))
        store.put(shard.key, Artifact({}, {"images": pixels.astype(np.uint8)}))
    return store


def interrupted(at: int) -> Callable[..., list[float]]:
    """Transfer that ends abruptly after so many steps, without a chance to tidy up."""

    def work(*args: Any, progress: Callable[..., None], **options: Any) -> list[float]:
        def stop(done: int, total: int, /, **facts: float) -> None:
            progress(done, total, **facts)
            if done == at:
                raise KeyboardInterrupt

        return transfer(*args, progress=stop, **options)

    return work


def test_a_cell_goes_on_from_what_a_killed_run_kept(
    cell: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "STEPS_BETWEEN_WRITES", 2)
    calm, store = store_of(tmp_path / "calm", cell), store_of(tmp_path / "store", cell)
    compute(cell, calm.url)
    monkeypatch.setattr(experts, "transfer", interrupted(at=5))
    with pytest.raises(KeyboardInterrupt):
        compute(cell, store.url)
    assert Kept(store, cell.key).path.exists()
    assert not store.holds(cell.key)

    seen: list[int] = []

    def listening(*args: Any, progress: Callable[..., None], **options: Any) -> list[float]:
        return transfer(*args, progress=lambda done, *_, **__: seen.append(done), **options)

    monkeypatch.setattr(experts, "transfer", listening)
    compute(cell, store.url)
    assert seen == [5, 6]
    ours, theirs = store.get(cell.key), calm.get(cell.key)
    assert ours.meta["losses"] == theirs.meta["losses"]
    assert ours.arrays.keys() == theirs.arrays.keys()
    assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
    assert not Kept(store, cell.key).path.exists()


def test_what_is_of_no_use_is_thrown_away(cell: Experts, tmp_path: Path) -> None:
    store = store_of(tmp_path, cell)
    kept = Kept(store, cell.key)
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes(b"damaged")
    compute(cell, store.url)
    assert store.holds(cell.key)
    assert not kept.path.exists()
