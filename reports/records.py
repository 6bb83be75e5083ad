"""Reading result records: JSON lines, checked at the door, as pandas frames.

Records are append-only. Where several of one kind share a key, the last counts, so a cell run
again supersedes its earlier result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd

from ablations.errors import UserError

__all__ = ["GRIDS_FILE", "RECORDS_FILE", "Grid", "RecordError", "Records", "method_rank"]

RECORDS_FILE = "records.jsonl"
GRIDS_FILE = "grids.npz"
METHOD_ORDER = ("unguided", "naive", "single", "multi-experts", "ppap")
NO_PREDICTOR = "none"

Check = Callable[[Any], bool]


class RecordError(UserError):
    """Records that cannot be reported on: where, what is wrong, and the mend."""


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


@dataclass(frozen=True, eq=False)
class Records:
    """The records of one results folder; a kind that is absent is an empty frame.

    Attributes:
        sweep: which table or figure of the paper they belong to.
        setting: which scale of the experiment.
        budget: how much of it was run.
        rows: a table row each, sorted by predictor and method, its provenance flattened
            into ``commit, dirty, hardware, feature_extractor, samples_per_fid``.
        noise_accuracy: long: method, predictor, seed, timestep (0..999), accuracy (0..1).
        tradeoff: long: method, predictor, scale, seed, samples, accuracy (0..1), fid.
        grids: sample grids, sorted as the rows are.
    """

    sweep: str
    setting: str
    budget: str
    rows: pd.DataFrame
    noise_accuracy: pd.DataFrame
    tradeoff: pd.DataFrame
    grids: tuple[Grid, ...]

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Read ``records.jsonl`` and, where grids are recorded, ``grids.npz``.

        Args:
            folder: one results folder.

        Raises:
            RecordError: if the folder, a file, a line or an array is missing or malformed, or
                if the folder mixes sweeps, settings or budgets.
        """
        path = folder / RECORDS_FILE
        if not path.is_file():
            raise RecordError(f"{folder} has no {RECORDS_FILE}", "run the sweep that fills it")
        latest: dict[tuple[str, str], dict[str, Any]] = {}
        identity: tuple[str, str, str] | None = None
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            record = _parse(line, f"{path}:{number}")
            whose = (record["sweep"], record["setting"], record["budget"])
            identity = identity or whose
            if whose != identity:
                raise RecordError(
                    f"{path}:{number}: a record of {'/'.join(whose)} among {'/'.join(identity)}",
                    "keep one sweep, setting and budget per folder",
                )
            latest[record["kind"], record["key"]] = record
        if identity is None:
            raise RecordError(f"{path} is empty", "run the sweep that fills it")

        def of(kind: str) -> list[dict[str, Any]]:
            chosen = [record for record in latest.values() if record["kind"] == kind]
            return sorted(chosen, key=_order)

        curves = [pd.DataFrame(_columns(record)) for record in of("noise_accuracy")]
        return cls(
            *identity,
            rows=pd.DataFrame([_row(record) for record in of("row")]),
            noise_accuracy=pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
            tradeoff=pd.DataFrame([_point(record) for record in of("tradeoff")]),
            grids=_grids(folder / GRIDS_FILE, of("grid")),
        )

    @property
    def methods(self) -> list[str]:
        """Every method of any record, in the order of the tables."""
        found = {grid.method for grid in self.grids}
        for frame in (self.rows, self.noise_accuracy, self.tradeoff):
            found |= set() if frame.empty else set(frame["method"])
        return sorted(found, key=method_rank)


def method_rank(method: str) -> tuple[int, str]:
    """Sort key of a method: the paper's order, then any others by name."""
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), method)


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    predictor = record["predictor"]
    rank = method_rank(record["method"])
    return (predictor != NO_PREDICTOR, predictor, rank, record.get("scale", 0.0), record["key"])


def _parse(line: bytes, where: str) -> dict[str, Any]:
    mend = "mend or delete the line, or run its cell again"
    try:
        record = json.loads(line)
    except ValueError as error:  # of the syntax or of the encoding
        raise RecordError(f"{where}: not JSON ({error})", mend) from None
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise RecordError(f"{where}: kind {kind!r} is none of {', '.join(_FIELDS)}", mend)
    fault = _fault(record, _COMMON | _FIELDS[kind])
    if not fault and kind == "row":
        fault = _fault(record["provenance"], _PROVENANCE, "provenance.")
        fault = fault or _fault(record["provenance"]["hardware"], _HARDWARE, "provenance.hardware.")
    if not fault and kind == "noise_accuracy" and not _aligned(record):
        fault = "timesteps and accuracy differ in length"
    if fault:
        raise RecordError(f"{where}: {kind}: {fault}", mend)
    return dict(record)


def _fault(record: dict[str, Any], fields: dict[str, Check], prefix: str = "") -> str:
    for name, fits in fields.items():
        if name not in record:
            return f"{prefix}{name} is missing"
        if not fits(record[name]):
            return f"{prefix}{name} cannot be {json.dumps(record[name])[:60]}"
    return ""


def _aligned(record: dict[str, Any]) -> bool:
    return len(record["timesteps"]) == len(record["accuracy"])


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _measured(value: Any) -> bool:
    """A number, or null or NaN for what was not measured."""
    unmeasured = value is None or (isinstance(value, float) and math.isnan(value))
    return unmeasured or _number(value)


def _share(value: Any) -> bool:
    return _measured(value) and not (_number(value) and not 0 <= value <= 1)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


_COMMON: dict[str, Check] = dict.fromkeys(
    ("sweep", "setting", "budget", "key", "method", "predictor"), _text
)
_SHARES = ("accuracy", "accuracy_low", "accuracy_high", "precision", "recall")
_MEASURES = ("fid", "fid_low", "fid_high", "inception_score", "images_per_second")
_FIELDS: dict[str, dict[str, Check]] = {
    "row": {
        **dict.fromkeys(("supervision", "sampler"), _text),
        **dict.fromkeys(("experts", "samples"), _whole),
        **dict.fromkeys(("trainable_share", "scale"), _number),
        "seeds": _list_of(_whole),
        **dict.fromkeys(_SHARES, _share),
        **dict.fromkeys((*_MEASURES, "peak_memory_mib"), _measured),
        "provenance": lambda value: isinstance(value, dict),
    },
    "noise_accuracy": {"seed": _whole, "timesteps": _list_of(_whole), "accuracy": _list_of(_share)},
    "tradeoff": {
        "scale": _number,
        "seed": _whole,
        "samples": _whole,
        "accuracy": _share,
        "fid": _measured,
    },
    "grid": {"scale": _number, "array": _text, "labels": _list_of(_text)},
}
_PROVENANCE: dict[str, Check] = {
    "commit": _text,
    "dirty": lambda value: isinstance(value, bool),
    "hardware": lambda value: isinstance(value, dict),
    "feature_extractor": _text,
    "samples_per_fid": _whole,
}
_HARDWARE: dict[str, Check] = {
    "cpu": _text,
    "cores": _whole,
    "memory_gib": _number,
    "accelerator": lambda value: value is None or _text(value),
}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    measures = (*_SHARES, *_MEASURES, "peak_memory_mib")
    whole = ("method", "predictor", "supervision", "experts", "trainable_share", "sampler", "scale")
    provenance, machine = record["provenance"], record["provenance"]["hardware"]
    parts = [f"{machine['cpu']} ({machine['cores']} cores)", f"{machine['memory_gib']:.0f} GiB"]
    return {
        **{name: record[name] for name in whole},
        "seeds": tuple(record["seeds"]),
        "samples": record["samples"],
        **{name: math.nan if record[name] is None else float(record[name]) for name in measures},
        "commit": provenance["commit"],
        "dirty": provenance["dirty"],
        "hardware": ", ".join(parts + [machine["accelerator"]] * bool(machine["accelerator"])),
        "feature_extractor": provenance["feature_extractor"],
        "samples_per_fid": provenance["samples_per_fid"],
    }


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: record[name] for name in ("method", "predictor", "seed")},
        "timestep": record["timesteps"],
        "accuracy": np.array(record["accuracy"], dtype=np.float64),
    }


def _point(record: dict[str, Any]) -> dict[str, Any]:
    named = {name: record[name] for name in ("method", "predictor", "scale", "seed", "samples")}
    measured = {name: record[name] for name in ("accuracy", "fid")}
    return named | {k: math.nan if v is None else float(v) for k, v in measured.items()}


def _grids(path: Path, records: list[dict[str, Any]]) -> tuple[Grid, ...]:
    if not records:
        return ()
    mend = "run the sweep again: it writes the grids with their records"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise RecordError(f"{path} cannot be read ({type(error).__name__})", mend) from None
    grids = []
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
        grids.append(Grid(*owner, labels, images))
    if len({grid.images.shape[2:4] for grid in grids}) > 1:
        raise RecordError(f"{path} holds images of several sizes", mend)
    return tuple(grids)
