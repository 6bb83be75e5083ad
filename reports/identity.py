"""What a record is about: of two that say the same of the same row, the later counts.

Their keys do not matter: code that has changed gives a result a new key, and a table no second row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["GRIDS_FILE", "RECORDS_FILE", "latest"]

RECORDS_FILE, GRIDS_FILE = "records.jsonl", "grids.npz"
WHOSE = ("setting", "budget", "sweep", "predictor")
IDENTITY = {
    "row": (*WHOSE, "method", "sampler", "axes"),
    "tradeoff": (*WHOSE, "method", "sampler", "scale", "seed"),
    "noise_accuracy": (*WHOSE, "method", "seed"),
    "grid": (*WHOSE, "sampler", "array"),
    "strip": (*WHOSE, "sampler", "array"),
    "curve": (*WHOSE, "method", "sampler", "axes"),
    "claim": (*WHOSE, "method"),
    "sweep": WHOSE,
}
"""By kind, the fields that say what a record is about; a comparison is about its row."""
Record = Mapping[str, Any]


def latest(records: Iterable[Record]) -> list[Record]:
    """The records without those that a later one replaces, each in the place of the first.

    A comparison whose row or reference row has been replaced by another is left out: it compares
    what is no longer there. One among some rows, whose p is corrected as if the others differed by
    nothing, replaces none among all of the same rows. Points and pictures of old did not tell
    their sampler; those that do replace them.
    """
    records = list(records)
    rows = {r["key"]: _identity(r) for r in records if r.get("kind") == "row"}
    kept: dict[str, Record] = {}
    for record in records:
        if record.get("kind") == "comparison":
            name = "comparison of " + rows.get(record["row"], record["row"])
            if not _is_part_of(record, kept.get(name)):
                kept[name] = record
        else:
            kept[_identity(record)] = record
    replaced = set(_of_old(kept.values()))
    kept = {name: record for name, record in kept.items() if name not in replaced}
    standing = {r["key"] for r in kept.values() if r.get("kind") == "row"} | {None}
    gone = rows.keys() - standing
    return [r for r in kept.values() if not gone & {r.get("row"), r.get("reference")}]


def _is_part_of(record: Record, known: Record | None) -> bool:
    """Whether a comparison of some rows alone says less than the one of all that is known."""
    if known is None or not record.get("left_out") or known.get("left_out"):
        return False
    same = ("row", "reference", "comparisons")
    return all(record.get(name) == known.get(name) for name in same)


def _of_old(records: Iterable[Record]) -> Iterator[str]:
    """What records that tell their sampler would have been about before they did."""
    for record in records:
        if record.get("kind") in ("tradeoff", "grid", "strip") and "sampler" in record:
            array = str(record.get("array")).removesuffix(f"/{record['sampler']}")
            yield _identity({**record, "sampler": None, "array": array})


def _identity(record: Record) -> str:
    """What the record is about, as text; its key where its kind does not tell."""
    kind = record.get("kind")
    fields = IDENTITY.get(str(kind), ("key",))
    return json.dumps([kind, *(record.get(field) for field in fields)], sort_keys=True)
