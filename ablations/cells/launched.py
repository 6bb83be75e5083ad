"""The engine of ``accelerate launch`` and ``torchrun``: processes train each bank together.

Everything else is divided between the processes. They must see the same store.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ablations.cells.experts import Experts
from ablations.machine.cell import Cell
from ablations.machine.engine import Outcome, plan
from ablations.machine.kept import Kept
from ablations.machine.pools import put
from ablations.machine.store import Store

__all__ = ["is_main_process", "run"]


def is_main_process() -> bool:
    """Whether this process is the one that reports."""
    return Accelerator().is_main_process


def run(targets: Iterable[Cell], store: Store) -> Outcome:
    """Compute the targets and whatever they need; called in every process.

    A cell that fails ends the run in all processes, since the others would wait for it.

    Args:
        targets: the cells wanted, the same in every process.
        store: where artifacts are looked for and put.
    """
    accelerator = Accelerator()
    cells = _everything(targets)
    # One process decides what is missing: another may look when more is there.
    keys = [cell.key for cell in plan(cells.values(), store).todo]
    (keys,) = broadcast_object_list([keys])
    for wave in _waves([cells[key] for key in keys]):
        own = [cell for cell in wave if not isinstance(cell, Experts)]
        for cell in own[accelerator.process_index :: accelerator.num_processes]:
            began = time.monotonic()
            artifact = cell.compute(lambda needed: store.get(needed.key))
            put(store, cell, artifact, time.monotonic() - began)
        for cell in wave:
            if isinstance(cell, Experts):
                began = time.monotonic()
                with Kept(store, cell.key) as kept:
                    artifact = cell.train(lambda needed: store.get(needed.key), kept, accelerator)
                    if accelerator.is_main_process:
                        put(store, cell, artifact, kept.seconds + time.monotonic() - began)
                        kept.remove()
        accelerator.wait_for_everyone()
    return Outcome(computed=len(keys))


def _everything(targets: Iterable[Cell]) -> dict[str, Cell]:
    """The targets and all that they are made from, by key."""
    found: dict[str, Cell] = {}
    pending = list(targets)
    while pending:
        cell = pending.pop()
        if cell.key not in found:
            found[cell.key] = cell
            pending += cell.inputs()
    return found


def _waves(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Groups whose inputs are all in earlier groups."""
    left = {cell.key: cell for cell in cells}
    while left:
        ready = [c for c in left.values() if not any(i.key in left for i in c.inputs())]
        yield ready
        for cell in ready:
            del left[cell.key]
