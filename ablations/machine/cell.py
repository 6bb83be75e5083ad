"""Cells: frozen descriptions of one piece of work, keyed by content.

A cell's key is a hash of its kind, its version, its fields and the keys of the cells among
its fields, and of the code of fields whose classes are a plugin's. Raise a kind's ``VERSION``
when its computation changes: what was computed by the old one is then not used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ablations.errors import UserError
from ablations.machine.code import digest_of_class
from ablations.machine.kept import Kept
from ablations.machine.store import Artifact

__all__ = ["Cell", "FieldError", "Load", "describe"]

Load = Callable[["Cell"], Artifact]
"""Reads the artifact of an input."""
MOST_TOLD = 200
"""Characters of what is no field."""


class FieldError(UserError, TypeError):
    """A cell has something in a field that no key can be made of."""


@dataclass(frozen=True)
class Cell:
    """One piece of work; subclasses add fields and :meth:`compute`."""

    VERSION: ClassVar[int] = 1
    ALONE: ClassVar[bool] = False
    """Whether nothing else may run meanwhile: for what is timed."""
    GPUS: ClassVar[float] = 0.0
    """How many accelerators it asks a cluster for, beyond those that it finds by itself."""

    @property
    def version(self) -> int:
        """Of the computation; a kind of which only some cells are computed otherwise says which."""
        return self.VERSION

    @cached_property
    def key(self) -> str:
        """Hexadecimal content hash."""
        text = json.dumps(describe(self, root=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def inputs(self) -> Iterator[Cell]:
        """The cells whose artifacts this one reads: those among its fields."""
        for field in fields(self):
            yield from _cells_in(getattr(self, field.name))

    def label(self) -> str:
        """A few words for the progress line."""
        return type(self).__name__.lower()

    def seconds(self) -> float:
        """Expected time on one core, for the estimate of the time left."""
        return 1.0

    def size(self) -> int:
        """Expected bytes of its artifact, for the look at the disk before a run."""
        return 2**13

    def compute(self, load: Load) -> Artifact:
        """Do the work.

        Args:
            load: reads the artifacts of :meth:`inputs`.
        """
        raise NotImplementedError

    def resume(self, load: Load, kept: Kept) -> Artifact:
        """Do the work from where an interrupted run left it; by default all of it.

        Args:
            load: as for :meth:`compute`.
            kept: a file for what is done so far.
        """
        return self.compute(load)


def describe(value: Any, root: bool = False) -> Any:
    """A JSON-compatible description of a field, in which nested cells are their keys.

    What is no cell and of no class of this repository has no version, and is described with its
    class's code. NumPy's numbers are described as others.

    Raises:
        FieldError: for a field that is neither plain, a tuple nor a frozen dataclass.
    """
    if isinstance(value, Cell) and not root:
        return {"cell": value.key}
    if is_dataclass(value) and not isinstance(value, type):
        described = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        kind: dict[str, Any] = {"kind": type(value).__name__}
        if isinstance(value, Cell):
            kind["version"] = value.version
        elif code := digest_of_class(type(value)):
            kind["code"] = code
        return kind | described
    if isinstance(value, tuple):
        return [describe(part) for part in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, np.generic):
        return describe(value.item())
    raise FieldError(
        f"a cell's field cannot be a {type(value).__name__}: {value!r}"[:MOST_TOLD],
        "give a number, a word, or a tuple or frozen dataclass of these",
    )


def _cells_in(value: Any) -> Iterator[Cell]:
    if isinstance(value, Cell):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _cells_in(part)
