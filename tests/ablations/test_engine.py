"""Cells, keys and the engine that runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.cells import describe
from ablations.engine import plan, run
from ablations.store import Store

from .toy import Alone, Failing, Number, Sum


def tree() -> Sum:
    return Sum((Sum((Number(1), Number(2))), Alone((Number(2), Number(3)))))


def test_equal_cells_have_equal_keys_and_every_field_counts() -> None:
    assert tree().key == tree().key
    assert len({Number(1).key, Number(2).key, Sum((Number(1),)).key, Alone((Number(1),)).key}) == 4


def test_a_new_version_has_a_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Sum((Number(1),)).key
    monkeypatch.setattr(Number, "VERSION", 2)
    assert Sum((Number(1),)).key != before


def test_fields_that_cannot_be_keyed_are_refused() -> None:
    with pytest.raises(TypeError, match="field"):
        describe(Number([1]), root=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_needed_is_computed_once(tmp_path: Path, workers: int) -> None:
    store = Store(tmp_path)
    assert len(plan([tree(), Number(2)], store).todo) == 6
    outcome = run([tree(), Number(2)], store, workers, quiet=True)
    assert outcome.computed == 6
    assert not outcome.failures
    assert store.get(tree().key).meta["value"] == 8
    assert plan([tree()], store).todo == ()
    assert run([tree()], store, quiet=True).computed == 0


def test_only_what_is_lost_is_computed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([tree()], store, 1, quiet=True)
    store.path(tree().key).unlink()
    store.path(Number(1).key).write_bytes(b"damaged")
    assert [type(cell).__name__ for cell in plan([tree()], store).todo] == ["Sum"]
    assert run([tree()], store, 1, quiet=True).computed == 1
    assert run([tree(), Number(1)], store, 1, quiet=True).computed == 1


@pytest.mark.parametrize("how", ["raise", "user", "die"])
def test_a_failure_is_told_and_the_others_finish(tmp_path: Path, how: str) -> None:
    store = Store(tmp_path)
    failing = Failing(how)
    outcome = run([Sum((failing, Number(1))), tree()], store, 1, quiet=True)
    assert store.get(tree().key).meta["value"] == 8
    ((label, error),) = outcome.failures.items()
    assert failing.key in label
    assert (type(error).__name__, str(error)[:11]) == {
        "raise": ("ZeroDivisionError", "by nothing"),
        "user": ("UserError", "wrong; mend"),
        "die": ("BrokenProcessPool", "A process i"),
    }[how]
    assert outcome.skipped == ["sum"]


def test_provenance_is_stamped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([Number(4)], store, 1, quiet=True)
    meta = store.get(Number(4).key).meta
    assert meta["cell"] == {"kind": "Number", "version": 1, "value": 4}
    assert {"commit", "dirty", "created", "wall_seconds", "packages", "hardware"} <= set(
        meta["provenance"]
    )
