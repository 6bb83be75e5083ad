"""Records: results with their provenance, the one seam between the harness and the reports.

A results folder holds ``records.jsonl``, one JSON object a line, and ``grids.npz`` with the
pictures that ``grid`` records name. No torch here until something is stamped.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ablations.errors import UserError
from ppap.compute.cpu import cpu_model, instruction_limits, instruction_set
from ppap.files.archives import ArchiveError, read_arrays
from reports.identity import GRIDS_FILE, RECORDS_FILE, latest

__all__ = ["joined", "locked", "machines", "read", "stamp", "update", "write_grids"]

if sys.platform != "win32":
    import fcntl

PACKAGES = (
    "accelerate", "diffusers", "numpy", "peft", "safetensors", "scipy", "timm", "torch",
    "torch-fidelity", "torchvision", "transformers", "triton",
)  # fmt: skip
FIELDS: dict[str, dict[str, type]] = {
    "comparison": {"row": str, "reference": str},
    "failure": {"label": str, "reason": str, "needed_by": list, "resolved": bool},
}
"""Of some kinds of record, what the harness itself reads; reports read more."""
STAMP: dict[str, Any] = {
    "created": str,
    "commit": str,
    "dirty": bool,
    "wall_seconds": int | float,
    "hardware": dict,
    "packages": dict,
    "configuration": dict,
}
ROOT = Path(__file__).resolve().parents[2]
Record = Mapping[str, Any]


def stamp(wall_seconds: float) -> dict[str, Any]:
    """Provenance of what was just computed: when, by which code, on what."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(wall_seconds, 3),
        **_commit(),
        "packages": _packages(),
        "hardware": _hardware(),
    }


def joined(stamps: Iterable[Record]) -> dict[str, Any]:
    """Provenance of what was computed from several parts: the oldest's, and how others differ.

    Wall time is that of the parts together; ``machines`` are the differing ``hardware``.
    """
    stamps = sorted(stamps, key=lambda stamp: stamp["created"])
    return {
        **stamps[0],
        "dirty": any(stamp["dirty"] for stamp in stamps),
        "commits": sorted({stamp["commit"] for stamp in stamps}),
        "wall_seconds": round(sum(stamp["wall_seconds"] for stamp in stamps), 1),
        "machines": machines(stamps),
    }


def machines(stamps: Iterable[Record]) -> list[Any]:
    """The differing ``hardware`` of what has these provenances, in their order."""
    seen: list[Any] = []
    for stamp in stamps:
        for found in stamp.get("machines", [stamp["hardware"]]):
            seen += [found] * (found not in seen)
    return seen


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a results folder by key, without those that others have replaced.

    Raises:
        UserError: if a line is no record.
    """
    return {record["key"]: dict(record) for record in latest(_lines(folder / RECORDS_FILE))}


def update(folder: Path, records: Iterable[Record]) -> int:
    """Put records into a results folder; returns how many it did not hold yet.

    Two runs may do so at the same time, and one may be killed while it does: the file is
    replaced as a whole, under a lock.

    Raises:
        UserError: if a line of the folder's is no record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORDS_FILE
    with locked(folder):
        lines = _lines(path)
        known = {record["key"]: record for record in lines}
        fresh = [dict(record) for record in records if known.get(record["key"]) != record]
        kept = latest([*lines, *fresh])
        if kept != lines:
            scratch = path.with_name(f"{RECORDS_FILE}.part")
            with scratch.open("w") as file:
                file.writelines(json.dumps(record, sort_keys=True) + "\n" for record in kept)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
    return len(fresh)


def _lines(path: Path) -> list[Record]:
    """All records of a file; a last line that was cut short is none."""
    if not path.exists():
        return []
    *whole, last = path.read_bytes().split(b"\n")
    found = [_parse(line, f"{path}:{number}") for number, line in enumerate(whole, 1) if line]
    with suppress(UserError):
        found += [_parse(last, str(path))]
    return found


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # of the syntax or of the encoding
        raise UserError(f"{where} is not JSON ({error})", "mend or delete the line") from None
    if fault := _fault(record):
        raise UserError(f"{where} is no record: {fault}", "mend or delete the line")
    return dict(record)


def _fault(record: Any) -> str:
    """What keeps a line from being a record that the harness can work with; empty if nothing."""
    if not isinstance(record, dict):
        return "it is no object"
    kind, stamp = record.get("kind", ""), record.get("provenance", {})
    for name, wanted in {"key": str, **FIELDS.get(str(kind), {})}.items():
        if not isinstance(record.get(name), wanted):
            return f"its {name} is missing or wrong"
    if not isinstance(stamp, dict):
        return "its provenance is wrong"
    for name, wanted in STAMP.items():
        if name in stamp and not isinstance(stamp[name], wanted):
            return f"its provenance.{name} is wrong"
    if stamp and not stamp.keys() >= {"created", "commit", "dirty", "wall_seconds"}:
        return "its provenance does not say when, by which code and how long"
    return ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other run writes to the folder meanwhile."""
    with (folder / ".lock").open("w") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_grids(folder: Path, grids: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Add sample grids to the folder's ``grids.npz``, by name.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / GRIDS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            known = read_arrays(path) if path.exists() else {}
        except ArchiveError as error:
            raise UserError(f"{path} is {error}", "delete it, and run the sweep again") from error
        if all(name in known and np.array_equal(known[name], grids[name]) for name in grids):
            return
        scratch = folder / "grids.part.npz"
        np.savez_compressed(scratch, **{**known, **grids})
        scratch.replace(path)


@lru_cache
def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "ppap", "kernels", "ablations")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": True}


@lru_cache
def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    """The machine, and how much of it this process uses: both decide how sums are rounded."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Asked only where it is in use already: to be asked takes memory of an accelerator.
    accelerated = torch.cuda.is_initialized()
    return {
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "limits": instruction_limits(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(pages / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if accelerated else None,
    }
