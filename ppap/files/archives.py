"""Files of several arrays, as ``numpy.savez`` writes them: read, or refused in one way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

__all__ = ["ArchiveError", "read_arrays"]


class ArchiveError(ValueError):
    """What a file is instead of an archive of arrays: the end of a sentence about it."""


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an ``.npz`` file by name.

    Args:
        path: of the file.
        names: of those that are read, as far as it has them; all by default.

    Raises:
        ArchiveError: for a file that is missing, of another format, damaged, or of objects.
    """
    try:
        # Opened here: of a damaged file NumPy leaves its own open.
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if not isinstance(held, NpzFile):
                raise TypeError("it holds one array alone")
            wanted = [name for name in held.files if names is None or name in names]
            read: dict[str, Any] = {name: held[name] for name in wanted}
        if others := [name for name, found in read.items() if not isinstance(found, np.ndarray)]:
            raise ValueError(f"{others[0]} is no array")
        return read
    except Exception as error:  # zipfile, zlib and NumPy have errors of their own for damage
        told = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        raise ArchiveError(f"no .npz of arrays, or damaged ({told})") from error
