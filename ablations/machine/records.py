"""Records: results with their provenance, the one seam between the harness and the reports.

A results folder holds ``records.jsonl``, one JSON object a line, append-only, and
``grids.npz`` with the pictures that ``grid`` records name. No torch here.
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

__all__ = ["append", "read", "stamp", "write_grids"]

if sys.platform != "win32":
    import fcntl

RECORDS_FILE = "records.jsonl"
PACKAGES = ("torch", "torchvision", "triton", "timm", "peft", "torch-fidelity", "numpy", "scipy")
ROOT = Path(__file__).resolve().parents[2]


def stamp(wall_seconds: float) -> dict[str, Any]:
    """Provenance of what was just computed: when, by which code, on what."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(wall_seconds, 3),
        **_commit(),
        "packages": _packages(),
        "hardware": _hardware(),
    }


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a results folder by key; of several with one key, the last."""
    return {record["key"]: record for record in _lines(folder / RECORDS_FILE)}


def append(folder: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Append the records that the folder does not hold yet; returns how many those were.

    Two runs may append at the same time, and one may be killed while it does: the file is
    replaced as a whole, under a lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORDS_FILE
    with _locked(folder):
        lines = _lines(path)
        known = {record["key"]: record for record in lines}
        fresh = [dict(record) for record in records if known.get(record["key"]) != record]
        if fresh:
            scratch = path.with_name(f"{RECORDS_FILE}.part")
            text = "".join(json.dumps(r, sort_keys=True) + "\n" for r in [*lines, *fresh])
            with scratch.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
    return len(fresh)


def _lines(path: Path) -> list[dict[str, Any]]:
    """All records of a file, superseded ones too; a last line that was cut short is none."""
    if not path.exists():
        return []
    *whole, last = path.read_text().split("\n")
    found = [json.loads(line) for line in whole]
    if last:
        with suppress(ValueError):
            found.append(json.loads(last))
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other run writes to the folder meanwhile."""
    with (folder / ".lock").open("w") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_grids(folder: Path, grids: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Add sample grids to the folder's ``grids.npz``, by name."""
    path = folder / "grids.npz"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        known = dict(np.load(path)) if path.exists() else {}
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


@lru_cache
def _hardware() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].partition(":")[2].strip() if named else cpu
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "accelerator": None,
    }
