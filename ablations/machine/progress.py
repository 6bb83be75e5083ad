"""What a run shows while it runs: a bar over expected seconds, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Self

from tqdm import tqdm

from ablations.machine.cell import Cell

__all__ = ["Progress"]


class Progress:
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

    def pause(self, cell: Cell) -> None:
        """The cell will be started again."""
        self.started.pop(cell.key, None)

    def expect(self, cells: Iterable[Cell]) -> None:
        """More is to be done than it seemed."""
        self.expected |= {cell.key: cell.seconds() for cell in cells}
        self.bar.total = round(sum(self.expected.values()))

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
