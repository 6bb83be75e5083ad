"""Sample grids: images kept beside the records that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from reports.schema import RecordError

__all__ = ["Grid", "read_grids"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Samples of one method: a row per class, a column per seed.

    Attributes:
        method: whose samples they are.
        predictor: what guided them; ``"none"`` if nothing did.
        scale: guidance scale.
        labels: the class of each row.
        images: (R, K, H, W) or (R, K, H, W, 3) uint8, R = len(labels).
    """

    method: str
    predictor: str
    scale: float
    labels: tuple[str, ...]
    images: npt.NDArray[np.uint8]


def read_grids(path: Path, records: list[dict[str, Any]]) -> dict[str, Grid]:
    """The grids of the records of kind ``grid``, by key.

    Raises:
        RecordError: if the file cannot be read, or an array is missing or malformed.
    """
    if not records:
        return {}
    mend = "run the sweep again: it writes the grids with their records"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise RecordError(f"{path} cannot be read ({type(error).__name__})", mend) from None
    grids: dict[str, Grid] = {}
    for record in records:
        name, labels = record["array"], tuple(record["labels"])
        images = held.get(name)
        if images is None:
            raise RecordError(f"{path} has no array {name!r}", mend)
        pixels = images.shape[4:] in ((), (3,)) and images.dtype == np.uint8
        if images.ndim < 4 or not pixels or len(images) != len(labels) or not images.size:
            got = f"{images.dtype} {images.shape}"
            wanted = f"uint8 ({len(labels)}, columns, H, W) or (..., 3)"
            raise RecordError(f"{path}: array {name!r} is {got}, not {wanted}", mend)
        owner = (record["method"], record["predictor"], float(record["scale"]))
        grids[record["key"]] = Grid(*owner, labels, images)
    if len({grid.images.shape[2:4] for grid in grids.values()}) > 1:
        raise RecordError(f"{path} holds images of several sizes", mend)
    return grids
