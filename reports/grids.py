"""Sample grids: images kept beside the records that name them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppap.files.archives import ArchiveError, read_arrays
from reports.schema import RecordError

__all__ = ["Grid", "Strip", "read_grids"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Samples of one method, a column per seed; rows are classes, or views of a sample.

    Attributes:
        method: whose samples they are.
        predictor: what guided them; ``"none"`` if nothing did.
        scale: guidance scale; NaN for several guides, each with its own.
        labels: of the rows.
        images: (R, K, H, W) or (R, K, H, W, 3) uint8, R = len(labels).
        score: of all samples at that scale, where it was chosen by that; NaN if not.
    """

    method: str
    predictor: str
    scale: float
    labels: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    score: float = math.nan

    @property
    def scale_text(self) -> str:
        """The scale in words, and the score if it was chosen by it; empty where nothing guides."""
        if self.method == "unguided":
            return ""
        if math.isnan(self.scale):
            return "scales of each guide"
        score = "" if math.isnan(self.score) else f", score {self.score:.3f}"
        return f"scale {self.scale:g}{score}"


@dataclass(frozen=True, eq=False)
class Strip:
    """One guided trajectory, a column per step shown.

    Attributes:
        method: that guided.
        predictor: what guided.
        labels: of the rows, views of each step.
        columns: of the columns, e.g. ``t = 960``.
        experts: that guided the step, from 0; None for a column that no expert led to.
        images: (R, K, H, W) or (R, K, H, W, 3) uint8.
    """

    method: str
    predictor: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    experts: tuple[int | None, ...]
    images: npt.NDArray[np.uint8]


def read_grids(path: Path, records: list[dict[str, Any]]) -> dict[str, Grid | Strip]:
    """The pictures of the records of kinds ``grid`` and ``strip``, by key.

    Raises:
        RecordError: if the file cannot be read, or an array is missing or malformed.
    """
    if not records:
        return {}
    mend = "run the sweep again: it writes the grids with their records"
    try:
        held = read_arrays(path)
    except ArchiveError as error:
        raise RecordError(f"{path} cannot be read: it is {error}", mend) from None
    grids: dict[str, Grid | Strip] = {}
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
        owner = record["method"], record["predictor"]
        if record["kind"] == "strip":
            columns, experts = tuple(record["columns"]), tuple(record["experts"])
            if not len(columns) == len(experts) == images.shape[1]:
                wanted = f"{len(columns)} columns and {len(experts)} experts"
                raise RecordError(f"{path}: array {name!r} is {images.shape}, not {wanted}", mend)
            grids[record["key"]] = Strip(*owner, labels, columns, experts, images)
        else:
            scale = math.nan if record["scale"] is None else float(record["scale"])
            grids[record["key"]] = Grid(
                *owner, scale, labels, images, float(record.get("score", math.nan))
            )
    if len({grid.images.shape[2:4] for grid in grids.values()}) > 1:
        raise RecordError(f"{path} holds images of several sizes", mend)
    return grids
