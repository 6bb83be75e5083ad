"""The engine: computes the cells that are asked for and whatever they need.

Every cell runs in a worker with a fixed number of threads, so a result does not depend on how
many workers there are or where. What is in the store is not computed again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ablations.machine.cell import Cell
from ablations.machine.leases import Leases
from ablations.machine.pools import LocalPool, LostInputError, LostWorkerError, Pool
from ablations.machine.progress import Progress
from ablations.machine.store import Store

__all__ = ["Failure", "Outcome", "Plan", "plan", "run"]

ATTEMPTS = 3
"""At a cell whose inputs turn out to be damaged or gone."""
WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """What is to be done, inputs before what needs them.

    Attributes:
        todo: cells to compute.
        cached: number of cells that were found in the store and need nothing.
    """

    todo: tuple[Cell, ...]
    cached: int

    @property
    def seconds(self) -> float:
        """Expected time of all cells on one core."""
        return sum(cell.seconds() for cell in self.todo)

    @property
    def size(self) -> int:
        """Expected bytes of all their artifacts."""
        return sum(cell.size() for cell in self.todo)


@dataclass(frozen=True)
class Failure:
    """A cell that went wrong.

    Attributes:
        cell: which.
        error: what was raised, or :class:`ablations.machine.pools.LostWorkerError`.
        lost: the cells that needed it, directly or not, and were not computed.
    """

    cell: Cell
    error: BaseException
    lost: tuple[Cell, ...]

    @property
    def reason(self) -> str:
        """One line."""
        return f"{type(self.error).__name__}: {self.error}".splitlines()[0]


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        computed: number of cells computed.
        failures: what went wrong.
    """

    computed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Number of cells that needed one which failed."""
        return len({cell.key for failure in self.failures for cell in failure.lost})


def plan(targets: Iterable[Cell], store: Store) -> Plan:
    """Find what is missing for the targets, without computing anything."""
    todo: dict[str, Cell] = {}
    seen: set[str] = set()
    cached = 0

    def visit(cell: Cell) -> None:
        nonlocal cached
        if cell.key in seen:
            return
        seen.add(cell.key)
        if store.holds(cell.key):
            cached += 1
            return
        for needed in cell.inputs():
            visit(needed)
        todo[cell.key] = cell

    for target in targets:
        visit(target)
    return Plan(tuple(todo.values()), cached)


def run(
    targets: Iterable[Cell],
    store: Store,
    workers: int | None = None,
    quiet: bool = False,
    pool: Pool | None = None,
) -> Outcome:
    """Compute the targets and whatever they need.

    A cell that fails is reported in the outcome, and so is what needs it; all others are
    computed nevertheless.

    Args:
        targets: the cells wanted.
        store: where artifacts are looked for and put.
        workers: processes of this machine; by default one per core.
        quiet: no progress bar.
        pool: where cells are computed instead; it is closed afterwards.
    """
    todo = plan(targets, store).todo
    try:
        if not todo:
            return Outcome()
        pool = pool or LocalPool(store, workers)
        with Progress(todo, pool.size, quiet) as progress:
            return _Run(todo, store, pool, progress).finish()
    finally:
        if pool is not None:
            pool.close()


class _Run:
    """Cells on their way through a pool."""

    def __init__(self, todo: Sequence[Cell], store: Store, pool: Pool, progress: Progress) -> None:
        self.store = store
        self.pool = pool
        self.progress = progress
        self.outcome = Outcome()
        self.cells: dict[str, Cell] = {}
        self.blockers: dict[str, set[str]] = {}
        self.dependants: dict[str, dict[str, Cell]] = defaultdict(dict)
        self.ready: dict[str, Cell] = {}
        self.running: dict[str, Cell] = {}
        self.attempts: dict[str, int] = defaultdict(int)
        self.suspects: set[str] = set()
        self.leases = Leases(store)
        self._add(todo)

    def finish(self) -> Outcome:
        while self.ready or self.running:
            self._submit()
            self.leases.renew()
            self.progress.tick()
            if not self.running:
                time.sleep(WAIT_SECONDS)  # for another run, which has leased all that is ready
                continue
            for cell, result in self.pool.wait():
                del self.running[cell.key]
                self.leases.release(cell.key)
                if isinstance(result, BaseException):
                    self._retry_or_fail(cell, result)
                else:
                    self._succeed(cell, computed=True)
        return self.outcome

    def _add(self, cells: Sequence[Cell]) -> None:
        """Take up cells, whose inputs are in the store, unfinished or among them."""
        self.cells |= {cell.key: cell for cell in cells}
        for cell in cells:
            missing = {needed.key for needed in cell.inputs()} & self.cells.keys()
            self.blockers[cell.key] = missing
            for key in missing:
                self.dependants[key][cell.key] = cell
            if not missing:
                self.ready[cell.key] = cell

    def _submit(self) -> None:
        """Fill the pool; what must have it to itself waits until nothing else can run."""
        for cell in [cell for cell in self.ready.values() if not self._alone(cell)]:
            if len(self.running) >= self.pool.size or any(map(self._alone, self.running.values())):
                return
            self._start(cell)
        for cell in [cell for cell in self.ready.values() if self._alone(cell)]:
            if self.running:
                return
            self._start(cell)

    def _alone(self, cell: Cell) -> bool:
        return cell.ALONE or cell.key in self.suspects

    def _start(self, cell: Cell) -> None:
        """Begin a cell, unless another run has finished or leased it."""
        if not self.leases.take(cell.key):
            return
        del self.ready[cell.key]
        if self.store.holds(cell.key):
            self.leases.release(cell.key)
            self._succeed(cell, computed=False)
            return
        self.running[cell.key] = cell
        self.attempts[cell.key] += 1
        self.progress.start(cell)
        self.pool.submit(cell)

    def _succeed(self, cell: Cell, computed: bool) -> None:
        del self.cells[cell.key]
        self.outcome.computed += computed
        self.progress.finish(cell)
        for key, dependant in self.dependants.pop(cell.key, {}).items():
            self.blockers[key].discard(cell.key)
            if not self.blockers[key] and key in self.cells:
                self.ready[key] = dependant

    def _retry_or_fail(self, cell: Cell, error: BaseException) -> None:
        if isinstance(error, LostWorkerError) and cell.key not in self.suspects:
            # It may have been the fault of what ran beside it.
            self.suspects.add(cell.key)
            self.progress.pause(cell)
            self.ready[cell.key] = cell
            return
        if isinstance(error, LostInputError) and self.attempts[cell.key] < ATTEMPTS:
            self.progress.pause(cell)
            # Another that needs the same may have asked for it already.
            again = [
                needed
                for needed in plan(cell.inputs(), self.store).todo
                if needed.key not in self.cells
            ]
            self.progress.expect(again)
            self._add([*again, cell])
            return
        lost = self._what_waits_for(cell)
        self.outcome.failures.append(Failure(cell, error, tuple(lost)))
        for gone in (cell, *lost):
            if self.cells.pop(gone.key, None):
                self.progress.finish(gone)

    def _what_waits_for(self, cell: Cell) -> list[Cell]:
        """Directly or not, what another failure has cost already among it."""
        found: dict[str, Cell] = {}
        pending = [cell.key]
        while pending:
            dependants = self.dependants.get(pending.pop(0), {})
            pending += [key for key in dependants if key not in found]
            found |= dependants
        return list(found.values())
