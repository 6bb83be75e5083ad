"""``--config FILE.toml``: the options of a run, written down.

A key is an option without its dashes, ``sweeps`` what stands before them, and the table ``set``
holds what ``--set`` changes:

    sweeps = ["methods"]
    budget = "smoke"
    rows = ["naive", "ppap"]

    [set]
    temperature = 0.5
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ablations.errors import UserError

__all__ = ["arguments_of"]


def arguments_of(path: Path) -> list[str]:
    """The words of a command line that say what a file says.

    Raises:
        UserError: for a file that cannot be read, or a value that no command line could have.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: {error}", "mend the file, or name another") from error
    if "config" in found:
        raise UserError(f"--config {path}: it names another file", "copy what that one says")
    sweeps = _words("sweeps", found.pop("sweeps", []), path)
    changes = found.pop("set", {})
    if not isinstance(changes, dict):
        raise UserError(f"--config {path}: set is no table", "write [set], and field = value below")
    words = []
    for name, value in found.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        elif isinstance(value, list):
            words += [flag, *_words(name, value, path)]
        else:
            words += [f"{flag}={word}" for word in _words(name, [value], path)]
    for name, value in changes.items():
        several = value if isinstance(value, list) else [value]
        words += ["--set", f"{name}={','.join(_words(name, several, path))}"]
    return [*sweeps, *words]


def _words(name: str, values: Any, path: Path) -> list[str]:
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or any(isinstance(value, dict | list) for value in values):
        raise UserError(f"--config {path}: {name} cannot be {values!r}", "give words or numbers")
    return [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
