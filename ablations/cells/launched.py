"""The engine of ``accelerate launch`` and ``torchrun``: processes train each bank together.

Everything else is divided between the processes. They must see the same store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ablations.cells.experts import Experts
from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.machine.engine import Outcome, plan
from ablations.machine.kept import Kept
from ablations.machine.pools import put
from ablations.machine.store import Store

__all__ = ["is_main_process", "launched", "run"]


def launched() -> Accelerator:
    """The accelerator of all processes that were launched together.

    Raises:
        UserError: if it cannot see them all: each would do the whole work, and write what the
            others write.
    """
    # Without an accelerated device accelerate takes a process for the only one, unless told.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != processes:
        raise UserError(
            f"{processes} processes were launched, but accelerate sees "
            f"{accelerator.num_processes} of them",
            "launch with torchrun, or see what 'accelerate env' says",
        )
    return accelerator


def is_main_process() -> bool:
    """Whether this process is the one that reports; errors as :func:`launched`."""
    return launched().is_main_process


def run(targets: Iterable[Cell], store: Store) -> Outcome:
    """Compute the targets and whatever they need; called in every process.

    A cell that fails ends the run in all processes, since the others would wait for it.

    Args:
        targets: the cells wanted, the same in every process.
        store: where artifacts are looked for and put.

    Raises:
        UserError: as :func:`launched`.
    """
    accelerator = launched()
    cells = _everything(targets)
    # One process decides what is missing: another may look when more is there.
    alone = accelerator.is_main_process
    keys = [cell.key for cell in plan(cells.values(), store).todo] if alone else []
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
