"""Putting a run's results among the committed ones; nothing else writes there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ablations.machine import records
from ppap.files.archives import read_arrays
from reports.build import PAGE, RESULTS, build, build_page, results_folders
from reports.identity import GRIDS_FILE, RECORDS_FILE
from reports.records import REHEARSAL, RecordError, read_folder

__all__ = ["publish", "publish_all"]


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
    return _merged(folder, _target(folder, root))


def publish_all(folders: Sequence[Path], root: Path = RESULTS) -> list[Path]:
    """Publish several runs, and build the tables of each and the page of all results.

    Args:
        folders: of runs.
        root: of the results.

    Returns:
        The files that were written, the page last: ``reports/index.html`` for the committed
        results, however their folder is named, and ``root / "index.html"`` for others.

    Raises:
        RecordError: as :func:`publish`, of any run; none is published then.
    """
    targets = [_target(folder, root) for folder in folders]
    changed = dict.fromkeys(map(_merged, folders, targets))
    written = [path for folder in changed for path in build(folder)]
    page = PAGE if root.resolve() == RESULTS.resolve() else root / "index.html"
    return [*written, *build_page(results_folders(root), page)]


def _target(folder: Path, root: Path) -> Path:
    """Where a run is put, if it and what is there can be read, and it is a result."""
    found = read_folder(folder)
    if found.budget.startswith(REHEARSAL):
        raise RecordError(f"{folder} is of a rehearsal: no result", "publish a real run")
    if found.failures:
        raise RecordError(
            f"{folder} lacks what {found.failures[0].label} was needed for",
            "run its sweep again, and publish when nothing fails",
        )
    target = root / f"{found.setting}-{found.budget}"
    if (target / RECORDS_FILE).is_file():
        read_folder(target)
    return target


def _merged(folder: Path, target: Path) -> Path:
    """The folder of a run's results, with the run's own in it."""
    if target.resolve() == folder.resolve():
        records.update(target, ())  # without what has been replaced
        return target
    own = [r for r in records.read(folder).values() if r["kind"] != "failure"]
    if named := [record["array"] for record in own if record["kind"] in ("grid", "strip")]:
        records.write_grids(target, read_arrays(folder / GRIDS_FILE, named))
    records.update(target, own)
    return target
