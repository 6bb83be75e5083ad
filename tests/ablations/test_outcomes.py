"""A line for every sample, beside the records, and a log beside the bar."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablations.cells.intervals import RowFigures
from ablations.cells.results import About, Row
from ablations.cells.samples import Samples
from ablations.cells.scores import Score
from ablations.cells.setup import Setup
from ablations.machine import records
from ablations.machine.cell import Cell
from ablations.machine.engine import run
from ablations.machine.log import LOG, LOG_FILE, logged_to
from ablations.machine.store import Artifact, Store
from ablations.outcomes import OUTCOMES_FILE, read_outcomes, update_outcomes
from ablations.settings.catalogue import load_setting
from ablations.settings.plugins import load_plugins
from ppap.diffusion.ddim import DDIM
from tests.ablations.toy import Failing, Number


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Row:
    """Of two seeds, four stripes each."""
    monkeypatch.setenv("PPAP_PLUGINS", "")
    load_plugins(["ablations.examples.stripes"])
    setup = Setup.of(load_setting("stripes"))
    scores = tuple(Score(Samples(setup, DDIM(5), (), first, 4)) for first in (100, 200))
    about = About("any", "smoke", "unguided", axes=(("rate", 3),))
    return Row(setup, about, (0, 1), "ddim5", RowFigures(setup, scores, 5))


def stored(row: Row, store: Store) -> None:
    """Samples and scores, and a record that only says that the row is there."""

    def load(cell: Cell) -> Artifact:
        if not store.holds(cell.key):
            found = cell.compute(load)
            store.put(cell.key, Artifact({"inputs": [], **found.meta}, found.arrays))
        return store.get(cell.key)

    for score in row.figures.scores:
        load(score)


def recorded(row: Row) -> dict[str, object]:
    return {"key": row.key, "kind": "row", "method": row.about.method}


def test_every_sample_is_a_line_with_its_seed_target_and_figures(row: Row, tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "results"
    stored(row, store)
    for score in row.figures.scores:
        store.remove(store.path(score.samples.key))  # images are not needed, and may be many
    records.update(folder, [recorded(row)])
    assert update_outcomes(folder, [row], store) == 0
    table = read_outcomes(folder)
    assert list(table["sample"]) == [100, 101, 102, 103, 200, 201, 202, 203]
    assert list(table["seed"]) == [0] * 4 + [1] * 4
    assert list(table["target"]) == [0, 1] * 4
    assert set(table["key"]) == {row.key}
    assert set(table["axes"]) == {'{"rate": 3}'}
    scores = [store.get(score.key).arrays["accuracy"] for score in row.figures.scores]
    np.testing.assert_array_equal(table["accuracy"], np.concatenate(scores))
    before = (folder / OUTCOMES_FILE).read_bytes()
    assert update_outcomes(folder, [row], store) == 0
    assert (folder / OUTCOMES_FILE).read_bytes() == before


def test_a_row_that_is_replaced_loses_its_lines_and_others_keep_theirs(
    row: Row, tmp_path: Path
) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "results"
    stored(row, store)
    other, gone = (replace(row, about=replace(row.about, method=name)) for name in ("b", "c"))
    records.update(folder, [recorded(cell) for cell in (row, other)])
    update_outcomes(folder, [row, other, gone], store)
    assert set(read_outcomes(folder)["method"]) == {"unguided", "b"}
    later = replace(row, sampler="ddim5", seeds=(2, 3))
    records.update(folder, [recorded(later)])
    update_outcomes(folder, [later], store)
    table = read_outcomes(folder)
    assert {*zip(table["method"], table["key"], strict=True)} == {
        ("b", other.key),
        ("unguided", later.key),
    }


@pytest.mark.parametrize("method", ["0.10", "007", "1e-05", "NA", "None", "nan", 'a,"b"'])
def test_a_word_that_looks_like_a_number_or_like_none_stays_a_word(
    method: str, row: Row, tmp_path: Path
) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "results"
    stored(row, store)
    named = replace(row, about=replace(row.about, method=method))
    records.update(folder, [recorded(named)])
    update_outcomes(folder, [named], store)
    assert set(read_outcomes(folder)["method"]) == {method}
    other = replace(row, about=replace(row.about, predictor="other"))
    records.update(folder, [recorded(other)])
    update_outcomes(folder, [other], store)
    table = read_outcomes(folder)
    assert list(table["method"]) == [method] * 8 + ["unguided"] * 8


def test_scores_that_are_gone_are_counted(row: Row, tmp_path: Path) -> None:
    records.update(tmp_path, [recorded(row)])
    assert update_outcomes(tmp_path, [row], Store(tmp_path / "store")) == 1


def test_a_log_tells_of_every_cell_and_of_failures_whole(tmp_path: Path) -> None:
    store, cell = Store(tmp_path / "store"), Number(3)
    with logged_to(tmp_path):
        outcome = run([cell, Failing("zero")], store, 1, quiet=True)
        for failure in outcome.failures:
            LOG.error("failed: %s", failure.cell.label(), exc_info=failure.error)
    told = (tmp_path / LOG_FILE).read_text()
    assert f"INFO started number ({cell.key})" in told
    assert f"INFO ended number ({cell.key}), " in told
    assert "2/2 cells" in told
    assert "ERROR failed: failing\n" in told
    assert 'raise ZeroDivisionError("by nothing")' in told  # the worker's own traceback
    with pytest.raises(KeyboardInterrupt), logged_to(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / LOG_FILE).read_text().startswith(told)
    assert "ERROR ended by KeyboardInterrupt" in (tmp_path / LOG_FILE).read_text()
    assert not LOG.handlers
