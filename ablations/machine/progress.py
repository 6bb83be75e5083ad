"""What a run shows while it runs: a bar over expected seconds, and the time left.

In a terminal the bar is redrawn in place. Where nothing can be redrawn, in a log file or a pipe, a
plain line is written now and then, and one at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Self

from tqdm import tqdm

from ablations.machine.cell import Cell
from ablations.machine.log import LOG

__all__ = ["LINE_SECONDS", "Progress"]

LINE_SECONDS = 10.0
"""Between two lines of a log, at least."""


class Progress:
    """A bar over expected seconds, whose pace is learned as cells finish.

    Args:
        cells: that are to be computed.
        workers: how many at a time.
        quiet: show nothing.
    """

    def __init__(self, cells: Iterable[Cell], workers: int, quiet: bool) -> None:
        self.workers = workers
        self.plain = not quiet and not sys.stderr.isatty()
        self.began = self.told = time.monotonic()
        self.expected = {cell.key: cell.seconds() for cell in cells}
        self.started: dict[str, tuple[Cell, float]] = {}
        self.done_expected = self.done_spent = 0.0
        self.finished = 0
        self.bar = tqdm(
            total=round(sum(self.expected.values())),
            disable=quiet or self.plain,
            bar_format="{percentage:3.0f}% |{bar:30}| {desc}",
            mininterval=0.5,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        if self.plain:
            minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
            self._write(f"{self._count()}, {minutes} min {seconds:02} s")

    def start(self, cell: Cell) -> None:
        self.started[cell.key] = cell, time.monotonic()
        LOG.info("started %s (%s)", cell.label(), cell.key)
        self.tick()

    def pause(self, cell: Cell) -> None:
        """The cell will be started again."""
        LOG.warning("to be started again: %s (%s)", cell.label(), cell.key)
        self.started.pop(cell.key, None)

    def expect(self, cells: Iterable[Cell]) -> None:
        """More is to be done than it seemed."""
        self.expected |= {cell.key: cell.seconds() for cell in cells}
        self.bar.total = round(sum(self.expected.values()))

    def finish(self, cell: Cell) -> None:
        _, began = self.started.pop(cell.key, (cell, time.monotonic()))
        self.done_expected += self.expected[cell.key]
        spent = time.monotonic() - began
        self.done_spent += spent
        LOG.info("ended %s (%s), %.1f s; %s", cell.label(), cell.key, spent, self._count(1))
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
        text = f"{self._count()}, {left // 60:.0f} min {left % 60:02.0f} s left: {names}"
        if self.plain and now - self.told >= LINE_SECONDS:
            self.told = now
            self._write(text)
        self.bar.n = min(round(done), self.bar.total)
        self.bar.set_description_str(text)

    def _count(self, more: int = 0) -> str:
        return f"{self.finished + more}/{len(self.expected)} cells"

    def _write(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
