"""Costs are measured again with the options that a folder's searches found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ablations import retime as module
from ablations.cells.peer_costs import PeerCost
from ablations.errors import UserError
from ablations.machine import records
from ablations.machine.cell import Cell
from ablations.machine.engine import Outcome
from ablations.machine.records import stamp
from ablations.machine.store import Artifact, Store
from ablations.retime import retime

BUDGET = "smoke+timed_images=1"
STALE = {"seconds_per_image": 99.0, "relative_seconds": 99.0, "denoiser_forward": 99.0}


def row(method: str, trial: dict[str, Any], **changes: object) -> dict[str, Any]:
    """A record as the sweep writes it, with costs that nobody measured."""
    return {
        "kind": "row", "key": f"key of {method}", "setting": "fashion", "budget": BUDGET,
        "sweep": "peers", "path": "plain", "method": method, "predictor": "resnet",
        "accuracy": 0.5, "trial": trial, "provenance": stamp(1.0), **STALE, **changes,
    }  # fmt: skip


def trial(**options: object) -> dict[str, Any]:
    return {"scale": 2.0, "eta": 0.0, "options": [list(option) for option in options.items()]}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The records that come out; cells are computed in this process, without a report."""

    def run(cells: Iterable[Cell], store: Store, workers: int) -> Outcome:
        assert workers == 1
        for cell in cells:
            assert isinstance(cell, PeerCost)
            assert not store.holds(cell.key), "measured anew"
            found = cell.compute(lambda needed: pytest.fail(needed.label()))
            store.put(cell.key, Artifact({**found.meta, "provenance": stamp(2.0)}))
        return Outcome()

    found: list[dict[str, Any]] = []
    monkeypatch.setattr(module.engine, "run", run)
    monkeypatch.setattr(module, "_write", lambda rows, folder: found.extend(rows))
    return found


def timed(folder: Path, *rows: dict[str, Any], **options: Any) -> int:
    records.update(folder, rows)
    return retime(folder, store_url=str(folder / "store"), workers=1, **options)


def test_costs_alone_are_replaced_and_are_of_the_options_in_the_record(
    written: list[dict[str, Any]], tmp_path: Path
) -> None:
    before = [row("freedom", trial(recurrence=2)), row("naive", trial())]
    for _ in range(2):  # what the store holds by then is no answer
        assert timed(tmp_path, *before) == 0
    about, *after, again, more = written[:3] + written[4:]
    assert about["kind"] == "sweep"
    assert "relative_seconds" in about["metrics"]
    for old, new in zip(before, after, strict=True):
        assert {name: new[name] for name in ("key", "accuracy", "trial")} == {
            name: old[name] for name in ("key", "accuracy", "trial")
        }
        assert new["provenance"]["costs"]["wall_seconds"] == 2.0
        assert new["provenance"]["wall_seconds"] == 1.0
        assert len(new["provenance"]["machines"]) == 1
        assert 0 < new["seconds_per_image"] < 99
    freedom, naive = after
    assert naive["denoiser_forward"] == 25
    assert naive["denoiser_backward"] == naive["preparation_passes"] == 0
    assert freedom["denoiser_forward"] == freedom["denoiser_backward"] == 2 * 25
    assert [again["method"], more["method"]] == ["freedom", "naive"]
    json.dumps(written)


def test_rows_can_be_picked_and_those_of_other_code_are_refused(
    written: list[dict[str, Any]], tmp_path: Path
) -> None:
    known, theirs = row("naive", trial()), row("my_guide", trial())
    timed(tmp_path, known, theirs, rows=("na*",))
    assert [record.get("method") for record in written] == [None, "naive"]
    with pytest.raises(UserError, match=r"the row my_guide of resnet, smoke.*, is none"):
        timed(tmp_path)
    with pytest.raises(UserError, match="has no such row of the sweep peers"):
        timed(tmp_path, rows=("ppap",))
    with pytest.raises(UserError, match="has no row of the sweep peers"):
        timed(tmp_path / "empty")
