"""Before the first cell: whatever a run will need at its end is there.

A run takes minutes to days, and ends in records, tables and a page. What these need is looked at
first, so that no work is done whose result cannot be kept.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from ablations.errors import UserError
from ablations.machine.store import Store
from reports.identity import RECORDS_FILE

__all__ = [
    "GROUP",
    "PACKAGES",
    "RESULTS_BYTES",
    "require_packages",
    "require_room",
    "require_same_results",
    "require_writable",
]

GROUP = "harness"
"""The dependency group of pyproject.toml that holds :data:`PACKAGES`."""
PACKAGES = ("fsspec", "matplotlib", "pandas", "scipy", "seaborn", "tabulate")
REPORTS = ("reports.build", "reports.compare")
RESULTS_BYTES = 2**25
"""Records, pictures, tables, figures and the page of a results folder."""


def require_packages(names: Iterable[str] = PACKAGES) -> None:
    """Look whether the packages that build the reports can be imported.

    Raises:
        UserError: if one cannot; it names all that are missing, and their dependency group.
    """
    mend = f"install the dependency group '{GROUP}': pip install --group {GROUP}"
    if missing := [name for name in names if find_spec(name) is None]:
        named = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        verb = "are" if len(missing) > 1 else "is"
        raise UserError(f"tables and figures need {named}, which {verb} not installed", mend)
    for module in REPORTS:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"tables and figures cannot be built ({error})", mend) from error


def require_same_results(folder: Path, setting: str, budget: str) -> None:
    """Look whether a results folder can take records of a setting and budget.

    Raises:
        UserError: if its records or pictures cannot be read, or are of others.
    """
    from reports.records import read_folder

    path = folder / RECORDS_FILE
    if not path.is_file() or not path.stat().st_size:
        return
    found = read_folder(folder)
    if (found.setting, found.budget) != (setting, budget):
        raise UserError(
            f"{folder} holds results of {found.setting}, budget {found.budget}, and this run is "
            f"of {setting}, budget {budget}",
            "name another folder with --output",
        )


def require_room(needed: Iterable[tuple[Path, int]]) -> None:
    """Look whether there is room on the disks.

    Args:
        needed: folders, which need not exist, and how many bytes are going to be written there.

    Raises:
        UserError: if the folders of one disk need more than is free.
    """
    wanted: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, count in needed:
        wanted[_existing(folder).stat().st_dev].append((folder, count))
    for folders in wanted.values():
        total = sum(count for _, count in folders)
        free = shutil.disk_usage(_existing(folders[0][0])).free
        if total > free:
            named = " and ".join(str(folder) for folder, _ in folders)
            raise UserError(
                f"{named} may take {total / 2**20:,.0f} MiB, and {free / 2**20:,.0f} are free",
                "make room, or name other places with --store and --output",
            )


def require_writable(store: Store | None, folder: Path) -> None:
    """Make the folders of the store and of the results, and look whether files can be put there.

    Args:
        store: None if nothing is going to be written to it.
        folder: of the results.

    Raises:
        UserError: if one cannot be written; none of them is made then.
    """
    with _made() as made:
        if store is not None and store.local:
            _probe(Path(store.root), "the store", "--store", made)
        _probe(folder, "the results", "--output", made)
    if store is not None and not store.local:
        try:
            store.probe()
        except Exception as error:  # each protocol has errors of its own
            raise UserError(
                f"the store {store.url} cannot be written: {error}", "name another with --store"
            ) from error


@contextmanager
def _made() -> Iterator[list[Path]]:
    """A list of folders, deepest first, that are removed again if anything goes wrong."""
    made: list[Path] = []
    try:
        yield made
    except BaseException:
        for folder in sorted(made, reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise


def _probe(folder: Path, what: str, option: str, made: list[Path]) -> None:
    made += [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(1))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"{what} cannot be written to {folder}: {reason}", f"name another folder with {option}"
        ) from error


def _existing(folder: Path) -> Path:
    places: Sequence[Path] = (folder.absolute(), *folder.absolute().parents)
    return next(place for place in places if place.exists())
