"""The engine: computes the cells that are asked for and whatever they need.

Every cell runs in a worker process with a fixed number of threads, so a result does not
depend on how many workers there are. What is in the store is not computed again.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tqdm import tqdm

from ablations.cells import Cell, describe
from ablations.records import stamp
from ablations.store import Artifact, Store

__all__ = ["Outcome", "Plan", "plan", "run"]

POLL_SECONDS = 0.5
THREADS = 1
"""Per worker. One thread each on all cores beats all cores on one cell at these sizes."""


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


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        computed: number of cells computed.
        failures: what went wrong, by the label of the cell that it went wrong in.
        skipped: labels of cells that needed one which failed.
    """

    computed: int = 0
    failures: dict[str, BaseException] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


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
    targets: Iterable[Cell], store: Store, workers: int | None = None, quiet: bool = False
) -> Outcome:
    """Compute the targets and whatever they need.

    A cell that fails is reported in the outcome, and so is what needs it; all others are
    computed nevertheless.

    Args:
        targets: the cells wanted.
        store: where artifacts are looked for and put.
        workers: processes; by default one per core.
        quiet: no progress bar.
    """
    todo = {cell.key: cell for cell in plan(targets, store).todo}
    if not todo:
        return Outcome()
    together = min(workers or os.cpu_count() or 1, len(todo))
    with _Progress(todo.values(), together, quiet) as progress:
        return _Run(todo, store, together, progress).finish()


class _Run:
    """Cells on their way through the worker processes."""

    def __init__(
        self, todo: dict[str, Cell], store: Store, workers: int, progress: _Progress
    ) -> None:
        self.waiting = dict(todo)
        self.unfinished = set(todo)
        self.store = store
        self.workers = workers
        self.progress = progress
        self.outcome = Outcome()
        self.running: dict[Future[float], Cell] = {}

    def finish(self) -> Outcome:
        pool = _pool(self.workers, THREADS)
        try:
            while self.waiting or self.running:
                together, alone = self._ready()
                for cell in together[: self.workers - len(self.running)]:
                    self._submit(pool, cell)
                if not self.running:
                    if not alone:
                        break
                    # What is timed gets all cores, and a process of its own for its memory.
                    with _pool(1, os.cpu_count() or 1) as own:
                        self._submit(own, alone[0])
                        self._wait()
                elif self._wait():
                    pool.shutdown(wait=False)
                    pool = _pool(self.workers, THREADS)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return self.outcome

    def _ready(self) -> tuple[list[Cell], list[Cell]]:
        """Waiting cells whose inputs are finished: ordinary ones, and those that run alone."""
        ready = [
            cell
            for cell in self.waiting.values()
            if not any(needed.key in self.unfinished for needed in cell.inputs())
        ]
        return [c for c in ready if not c.ALONE], [c for c in ready if c.ALONE]

    def _submit(self, pool: ProcessPoolExecutor, cell: Cell) -> None:
        del self.waiting[cell.key]
        self.progress.start(cell)
        self.running[pool.submit(_compute, cell, self.store.root)] = cell

    def _wait(self) -> bool:
        """Wait until something has ended; True if the pool broke with it."""
        broken = False
        while True:
            done, _ = wait(self.running, POLL_SECONDS, FIRST_COMPLETED)
            self.progress.tick()
            for future in done:
                broken = self._settle(self.running.pop(future), future) or broken
            if done:
                return broken

    def _settle(self, cell: Cell, future: Future[float]) -> bool:
        error = future.exception()
        if error is None:
            self.unfinished.discard(cell.key)
            self.outcome.computed += 1
            self.progress.finish(cell)
            return False
        self.outcome.failures[f"{cell.label()} ({cell.key})"] = error
        self.progress.finish(cell)
        self._skip_what_needs(cell)
        return isinstance(error, BrokenProcessPool)

    def _skip_what_needs(self, cell: Cell) -> None:
        for dependant in list(self.waiting.values()):
            if dependant.key in self.waiting and cell.key in {i.key for i in dependant.inputs()}:
                del self.waiting[dependant.key]
                self.outcome.skipped.append(dependant.label())
                self.progress.finish(dependant)
                self._skip_what_needs(dependant)


class _Progress:
    """A bar over expected seconds, whose pace is learned as cells finish."""

    def __init__(self, cells: Iterable[Cell], workers: int, quiet: bool) -> None:
        self.workers = workers
        self.expected = {cell.key: cell.seconds() for cell in cells}
        self.started: dict[str, tuple[Cell, float]] = {}
        self.done_expected = self.done_spent = 0.0
        self.finished = 0
        self.bar = tqdm(
            total=round(sum(self.expected.values())),
            disable=quiet,
            bar_format="{percentage:3.0f}% |{bar:30}| {desc}",
            mininterval=0.5,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def start(self, cell: Cell) -> None:
        self.started[cell.key] = cell, time.monotonic()
        self.tick()

    def finish(self, cell: Cell) -> None:
        _, began = self.started.pop(cell.key, (cell, time.monotonic()))
        self.done_expected += self.expected[cell.key]
        self.done_spent += time.monotonic() - began
        self.finished += 1
        self.tick()

    def tick(self) -> None:
        """Redraw; a running cell counts in proportion to its time, up to nine tenths."""
        # The estimates' own pace weighs as much as a minute of experience.
        pace = (60 + self.done_spent) / (60 + self.done_expected)
        now = time.monotonic()
        partial = sum(
            min((now - began) / pace, 0.9 * self.expected[cell.key])
            for cell, began in self.started.values()
        )
        done = self.done_expected + partial
        left = max(0.0, (sum(self.expected.values()) - done) * pace / self.workers)
        names = ", ".join(cell.label() for cell, _ in self.started.values())
        self.bar.n = min(round(done), self.bar.total)
        self.bar.set_description_str(
            f"{self.finished}/{len(self.expected)} cells, "
            f"{left // 60:.0f} min {left % 60:02.0f} s left: {names}"
        )


def _pool(workers: int, threads: int) -> ProcessPoolExecutor:
    context: multiprocessing.context.BaseContext
    if "forkserver" in multiprocessing.get_all_start_methods():
        # One clean process imports torch, once; workers are its forks and start at no cost.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ablations.stages"])
    else:
        context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _prepare_worker, (threads, dict(os.environ)))


def _prepare_worker(threads: int, environment: dict[str, str]) -> None:
    """Set threads, and the caller's environment: the server that forks may be older than it."""
    import torch

    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


def _compute(cell: Cell, root: Path) -> float:
    """Runs in a worker: compute one cell into the store, stamped with its provenance."""
    store = Store(root)
    began = time.monotonic()
    artifact = cell.compute(lambda needed: store.get(needed.key))
    spent = time.monotonic() - began
    meta = {"cell": describe(cell, root=True), "provenance": stamp(spent), **artifact.meta}
    store.put(cell.key, Artifact(meta, artifact.arrays))
    return spent
