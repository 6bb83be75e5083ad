"""Putting a run's results among the committed ones; nothing else writes there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ablations.machine import records
from reports.build import RESULTS
from reports.records import GRIDS_FILE, REHEARSAL, RecordError, read_folder

__all__ = ["publish"]


def publish(folder: Path, root: Path = RESULTS) -> Path:
    """Merge a results folder into ``root / SETTING-BUDGET``.

    A record replaces the one that is there of the same row, whatever their keys; rows that the
    run has not got stay. Tables and pages are not built.

    Args:
        folder: of a run, e.g. ``.ppap/results/fashion-default``.
        root: of the results.

    Returns:
        The folder that they are in now.

    Raises:
        RecordError: if records of either folder cannot be read, or the run was a rehearsal or
            lacks results because a cell failed; nothing is written then.
    """
    found = read_folder(folder)
    if found.budget.startswith(REHEARSAL):
        raise RecordError(f"{folder} is of a rehearsal: no result", "publish a real run")
    if found.failures:
        raise RecordError(
            f"{folder} lacks what {found.failures[0].label} was needed for",
            "run its sweep again, and publish when nothing fails",
        )
    target = root / f"{found.setting}-{found.budget}"
    if target.resolve() == folder.resolve():
        records.update(target, ())  # without what has been replaced
        return target
    if (target / records.RECORDS_FILE).is_file():
        read_folder(target)
    own = [r for r in records.read(folder).values() if r["kind"] != "failure"]
    if named := [record["array"] for record in own if record["kind"] in ("grid", "strip")]:
        with np.load(folder / GRIDS_FILE) as grids:
            records.write_grids(target, {name: grids[name] for name in named})
    records.update(target, own)
    return target
