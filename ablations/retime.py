"""What an image costs by every method of a results folder, timed again: all in turn on one machine.

Nothing is searched for or sampled anew; which options a method was found to work best with, the
folder's records say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations import preflight
from ablations.cells.peer_costs import PeerRow
from ablations.cells.peers import Trial
from ablations.errors import UserError
from ablations.machine import engine, records
from ablations.machine.store import Artifact
from ablations.runs import Options, build_reports, open_store, tell_failures
from ablations.sweeps import SWEEPS, Lab, is_row

__all__ = ["retime"]

SWEEP = "peers"


def retime(
    folder: Path,
    *,
    rows: Sequence[str] = (),
    plugin: Sequence[str] = (),
    store_url: str | None = None,
    workers: int | None = None,
    output: Path | None = None,
) -> int:
    """Time a folder's methods and write their rows, the costs replaced, to another.

    Experts that guide are trained first where the store lacks them.

    Args:
        folder: of results, with rows of the sweep ``peers``.
        rows: only those with these labels, which may have a ``*``; all by default.
        plugin: modules with guides that some rows are of.
        store_url: of artifacts; ``$PPAP_STORE`` or ``.ppap/store`` by default.
        workers: cells at a time, where any may run beside others; one per core by default.
        output: ``.ppap/results/SETTING-BUDGET`` by default.

    Returns:
        The exit status.

    Raises:
        UserError: if the folder has no such row, or rows that this code would call otherwise.
    """
    preflight.require_packages()
    found = [r for r in records.read(folder).values() if r.get("trial") and r["sweep"] == SWEEP]
    found = [r for r in found if not rows or is_row(r["method"], tuple(rows))]
    if not found:
        raise UserError(
            f"{folder} has no {'such ' * bool(rows)}row of the sweep {SWEEP}",
            f"name a folder with a run of {SWEEP}" + " and some of its rows" * bool(rows),
        )
    options = _options_of(found[0], tuple(plugin))
    lab, store = options.lab(), open_store(store_url)
    cells = _rows(found, options, lab)
    costs = [row.cost for row in cells if row.cost]
    for cost in costs:
        store.remove(store.path(cost.key))
    outcome = engine.run(costs, store, workers)
    timed = [
        _with_costs(record, row, store.get(cost.key))
        for record, row, cost in zip(found, cells, costs, strict=True)
        if store.holds(cost.key)
    ]
    if timed:
        _write([SWEEPS[SWEEP].record(lab), *timed], output or options.folder(lab))
    return tell_failures(outcome)


def _options_of(record: Mapping[str, Any], plugin: tuple[str, ...]) -> Options:
    """The run that the record is of."""
    budget, *changes = record["budget"].split("+")
    return Options(
        (SWEEP,), record["setting"], budget,
        changes=tuple(changes), plugin=plugin, path=record["path"],
    )  # fmt: skip


def _rows(found: list[dict[str, Any]], options: Options, lab: Lab) -> list[PeerRow]:
    """One for each record, with a cost of the options that the record's search found."""
    cells = options.results(lab)[SWEEP]
    made = {(c.about.method, c.about.predictor): c for c in cells if isinstance(c, PeerRow)}
    rows = []
    for record in found:
        row = made.get((record["method"], record["predictor"]))
        if row is None or row.cost is None or record["budget"] != lab.budget_name:
            raise UserError(
                f"the row {record['method']} of {record['predictor']}, {record['budget']}, is "
                "none that this code makes",
                "name its plugin with --plugin, or others with --rows",
            )
        samples = replace(row.cost.samples, trial=Trial.of(record["trial"]))
        rows.append(replace(row, cost=replace(row.cost, samples=samples)))
    return rows


def _with_costs(record: Mapping[str, Any], row: PeerRow, cost: Artifact) -> dict[str, Any]:
    """The record, and in its provenance when and where its costs were measured."""
    stamp, known = dict(cost.meta["provenance"]), record["provenance"]
    provenance = {**known, "machines": records.machines([known, stamp]), "costs": stamp}
    figures = {**cost.meta["metrics"], "preparation_passes": row.preparation_passes}
    return {**record, **figures, "provenance": provenance}


def _write(found: list[dict[str, Any]], folder: Path) -> None:
    records.update(folder, found)
    build_reports(folder)
