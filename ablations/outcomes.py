"""What became of every single sample: a table beside the records, for pandas and the like.

    pandas.read_csv(".ppap/results/fashion-default/outcomes.csv.gz")

A line is a sample of a row: ``key`` is that of the row's record, ``seed`` that of its training,
``sample`` that of the noise it was drawn from, ``target`` its class, and the rest its figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from ablations.cells.given import Given
from ablations.cells.results import Row
from ablations.cells.scores import DIVERSITY, FEATURES, Score
from ablations.machine import records
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact, Store

__all__ = ["OUTCOMES_FILE", "read_outcomes", "update_outcomes"]

OUTCOMES_FILE = "outcomes.csv.gz"
WORDS = ("key", "sweep", "predictor", "method", "sampler", "axes")
"""Columns that stay as they are written: a method may be called 0.10, or none."""


def read_outcomes(folder: Path) -> pd.DataFrame:
    """The table of a results folder; empty if it has none."""
    path = folder / OUTCOMES_FILE
    if not path.exists():
        return pd.DataFrame({"key": []})
    words = dict.fromkeys(WORDS, str)
    return pd.read_csv(path, dtype=words, keep_default_na=False, na_values=[""])


def update_outcomes(folder: Path, rows: Iterable[Row], store: Store) -> int:
    """Put the samples of rows into the table, and take out those of rows that are no longer there.

    Args:
        folder: whose records are up to date.
        rows: that are finished.
        store: where their scores are; a row whose scores are gone keeps the lines that it has.

    Returns:
        How many rows have no line, since their scores are gone.
    """
    with records.locked(folder):
        return _update(folder, list(rows), store)


def _update(folder: Path, rows: list[Row], store: Store) -> int:
    kept = records.read(folder).keys()
    known = read_outcomes(folder)
    present = set(known["key"])
    wanted = [row for row in rows if row.key in kept and row.key not in present]
    here = [row for row in wanted if all(store.holds(cell.key) for cell in _read(row))]
    parts = [known[known["key"].isin(kept)]]
    parts += [_of_score(row, *pair, store) for row in here for pair in _scores(row)]
    if len(parts) > 1 or len(parts[0]) < len(known):
        table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        scratch = folder / f"{OUTCOMES_FILE}.part"
        table.to_csv(scratch, index=False, compression={"method": "gzip", "mtime": 0})
        scratch.replace(folder / OUTCOMES_FILE)
    return len(wanted) - len(here)


def _scores(row: Row) -> Iterator[tuple[int, Score]]:
    yield from zip(row.seeds, row.figures.scores, strict=True)


def _read(row: Row) -> Iterator[Cell]:
    """What its lines are made from; images only where these brought their targets along."""
    for score in row.figures.scores:
        yield score
        if isinstance(score.samples, Given):
            yield score.samples


def _of_score(row: Row, seed: int, score: Score, store: Store) -> pd.DataFrame:
    samples, about = score.samples, row.about
    arrays = store.get(score.key).arrays
    whose = {
        "key": row.key,
        "sweep": about.sweep,
        "predictor": about.predictor,
        "method": about.method,
        "sampler": row.sampler,
        "axes": json.dumps(dict(about.axes)),
        "seed": seed,
    }
    figures = {name: found for name, found in arrays.items() if name not in (FEATURES, DIVERSITY)}
    drawn = store.get(samples.key) if isinstance(samples, Given) else Artifact({})
    target = samples.targets_of("class", drawn)
    return pd.DataFrame({**whose, "sample": samples.seeds, "target": target.numpy(), **figures})
