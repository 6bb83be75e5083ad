"""Looking at a store: where a result comes from, how far sweeps are, what nobody needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.errors import UserError
from ablations.machine import engine, records
from ablations.machine.store import DamagedArtifactError, Store
from ablations.runs import Options
from reports.identity import RECORDS_FILE

__all__ = ["garbage", "garbage_lines", "provenance_lines", "status_lines"]


def provenance_lines(store: Store, results: Sequence[Path], prefix: str) -> Iterator[str]:
    """An artifact or record with everything that it was made from, as an indented tree.

    Args:
        store: where artifacts are looked for.
        results: records of every folder below these are known, even if their artifacts are gone.
        prefix: of its key, long enough to be unique.

    Raises:
        UserError: if no key or more than one begins so.
    """
    kept = {key: record for key, record in _records(results) if key.startswith(prefix)}
    found = sorted({*store.find(prefix), *kept})
    if len(found) != 1:
        some = "no key" if not found else f"{len(found)} keys"
        places = " and ".join(map(str, results))
        raise UserError(
            f"{some} of {store.url} or the records below {places} begin with {prefix!r}",
            "give another" if not found else "give more of the key",
        )
    shown: set[str] = set()

    def tell(key: str, depth: int) -> Iterator[str]:
        indent = "  " * depth
        try:
            meta = store.meta(key)
        except (FileNotFoundError, DamagedArtifactError) as error:
            lost = "damaged" if isinstance(error, DamagedArtifactError) else "not in the store"
            record = kept.get(key)
            if record is None:
                yield f"{indent}{key}  {lost}"
                return
            yield f"{_of_record(record)}  {lost}"
            stamp = record.get("provenance", {})
            yield from (f"  {line}" for line in _recorded(stamp))
            for needed in stamp.get("configuration", {}).get("artifacts", ()):
                yield from tell(needed, depth + 1)
            return
        stamp = meta["provenance"]
        again = key in shown
        yield (
            f"{indent}{key}  {meta.get('label', meta['cell']['kind'])}  {stamp['created']}  "
            f"commit {stamp['commit']}{' (dirty)' * stamp['dirty']}  "
            f"{stamp['wall_seconds']:.1f} s{'  (as above)' * again}"
        )
        if not again:
            shown.add(key)
            for needed in _inputs(meta):
                yield from tell(needed, depth + 1)

    yield from tell(found[0], 0)


def _of_record(record: Mapping[str, Any]) -> str:
    """The first line of what only a record tells of."""
    names = [str(record[name]) for name in ("kind", "method", "predictor") if name in record]
    line = f"{record['key']}  {record.get('sweep', 'no sweep')}: {' '.join(names)}"
    stamp = record.get("provenance")
    if stamp is None:
        return line
    dirty = " (dirty)" * stamp["dirty"]
    return (
        f"{line}  {stamp['created']}  commit {stamp['commit']}{dirty}  "
        f"{stamp['wall_seconds']:.1f} s"
    )


def _recorded(stamp: Mapping[str, Any]) -> Iterator[str]:
    """What a record itself knows of where it comes from."""
    for part in ("hardware", "packages"):
        if part in stamp:
            facts = (f"{name} {value}" for name, value in stamp[part].items() if value)
            yield f"{part}: {', '.join(facts)}"
    for name, value in stamp.get("configuration", {}).items():
        if value and name != "artifacts":
            yield f"{name}: {json.dumps(value, sort_keys=True)}"


def status_lines(store: Store, options: Options) -> Iterator[str]:
    """How far each sweep is, and what is left; then failures and the size of the store.

    Args:
        store: where artifacts are looked for.
        options: which sweeps, at which budget; failures are those of their results folder.
    """
    lab = options.lab()
    yield from (f"note: {note}" for note in options.notes(lab))
    for name, targets in options.results(lab).items():
        plan = engine.plan(targets, store)
        missing = {cell.key for cell in plan.todo}
        done = sum(result.key not in missing for result in targets)
        left = f"about {plan.seconds / 60:.0f} core-minutes left" if missing else "complete"
        yield f"{name}: {done} of {len(targets)} results, {len(plan.todo)} cells missing, {left}"
    for record in records.read(options.folder(lab)).values():
        if record.get("kind") == "failure" and not record["resolved"]:
            yield f"failed: {record['label']}: {record['reason']}"
    files = list(store.contents())
    artifacts = sum(bool(file.key) for file in files)
    size = sum(file.size for file in files)
    yield f"{store.url}: {artifacts} artifacts, {size / 2**20:.1f} MiB"


def garbage(store: Store, results: Sequence[Path], older_than: float) -> list[tuple[str, int]]:
    """Files of the store that no record needs, with their sizes in bytes.

    Args:
        store: to be cleaned.
        results: every results folder below these counts.
        older_than: seconds; what is younger may belong to a run in progress, and is kept.

    Raises:
        UserError: if no records are found: all would be garbage.
    """
    roots = [key for key, _ in _records(results)]
    if not roots:
        places = " or ".join(map(str, results))
        raise UserError(f"no records below {places}", "name their folder with --results")
    needed = _closure(store, roots)
    return [
        (file.path, file.size)
        for file in store.contents()
        if file.age >= older_than and (not file.key or file.key not in needed)
    ]


def garbage_lines(found: list[tuple[str, int]]) -> Iterator[str]:
    """What would be removed."""
    for path, size in found:
        yield f"{size / 2**20:9.3f} MiB  {path}"
    total = sum(size for _, size in found)
    yield f"{len(found)} files, {total / 2**20:.1f} MiB"


def _records(results: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record of every results folder, by key."""
    for folder in results:
        for path in sorted(folder.rglob(RECORDS_FILE)):
            yield from records.read(path.parent).items()


def _inputs(meta: Mapping[str, Any]) -> list[str]:
    """Keys of what an artifact was made from.

    Artifacts of the first stores do not say so, but describe their cell, and so its fields.
    """
    return list(meta["inputs"]) if "inputs" in meta else sorted(set(_cells_in(meta["cell"])))


def _cells_in(description: Any) -> Iterator[str]:
    if isinstance(description, dict):
        if set(description) == {"cell"}:
            yield description["cell"]
        for part in description.values():
            yield from _cells_in(part)
    elif isinstance(description, list):
        for part in description:
            yield from _cells_in(part)


def _closure(store: Store, roots: list[str]) -> set[str]:
    """The keys of whole artifacts among the roots and what they were made from."""
    needed: set[str] = set()
    pending = list(roots)
    while pending:
        key = pending.pop()
        if key in needed:
            continue
        meta = _meta(store, key)
        if meta is not None:
            needed.add(key)
            pending += _inputs(meta)
    return needed


def _meta(store: Store, key: str) -> Mapping[str, Any] | None:
    try:
        return store.meta(key)
    except (FileNotFoundError, DamagedArtifactError):
        return None
