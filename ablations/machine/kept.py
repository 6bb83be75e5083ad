"""What a cell that takes long keeps of its work, so that an interrupted run goes on from it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from ablations.machine.store import KEPT, Store

__all__ = ["Kept"]


class Kept:
    """A file of a cell's own, beside the place of its artifact.

    Of a store elsewhere, it is a file of this machine that is copied from there and to there, and
    goes with the context.

    Args:
        store: where the artifact is going to be.
        key: of the cell.

    Attributes:
        path: what an interrupted run has kept, if there is a file; the cell replaces it.
        seconds: that interrupted runs spent on what is gone on from; the cell sets it.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.there = store.path(key) + KEPT
        self.path = Path(self.there)
        self.seconds = 0.0
        self._copied = 0
        self._own = ExitStack()
        if not store.local:
            folder = self._own.enter_context(tempfile.TemporaryDirectory())
            self.path = Path(folder) / f"{key}{KEPT}"
            with suppress(FileNotFoundError):
                store.files.get_file(self.there, str(self.path))
                self._copied = self._written()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._own.close()

    def save(self) -> None:
        """Call it often: what has been written is copied to where it is kept."""
        if self.store.local or self._written() == self._copied:
            return
        self._copied = self._written()
        scratch = f"{self.there}.part"
        self.store.files.makedirs(scratch.rpartition("/")[0], exist_ok=True)
        self.store.files.put_file(str(self.path), scratch)
        self.store.files.mv(scratch, self.there)

    def remove(self) -> None:
        """The cell is finished, or what was kept is of no use."""
        self.path.unlink(missing_ok=True)
        self.store.remove(self.there)

    def _written(self) -> int:
        """When the file was last replaced; 0 if there is none."""
        return self.path.stat().st_mtime_ns if self.path.exists() else 0
