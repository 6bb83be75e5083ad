"""What a run shows: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from ablations.machine import progress
from ablations.machine.progress import LINE_SECONDS, Progress
from tests.ablations.toy import Number

CELLS = [Number(value) for value in range(4)]
TICKS = 130  # of half a second


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A function that does 65 seconds of work in no time, quietly or not."""

    def run(quiet: bool) -> None:
        now = [1_000.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        with Progress(CELLS, 1, quiet) as shown:
            for cell in CELLS:
                shown.start(cell)
                for _ in range(TICKS // len(CELLS)):
                    now[0] += 0.5
                    shown.tick()
                shown.finish(cell)

    return run


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(
    work: Callable[[bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    work(False)
    written = capsys.readouterr().err
    *during, last = written.splitlines()
    assert len(during) == TICKS * 0.5 // LINE_SECONDS
    assert all(" left: number" in line for line in during)
    assert last == "4/4 cells, 1 min 04 s"
    assert "\r" not in written


def test_a_terminal_gets_a_bar_that_is_redrawn(
    work: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(False)
    written = capsys.readouterr().err
    assert "\r100% |" in written
    assert "4/4 cells" in written
    assert written.count("\n") == 1


def test_a_quiet_run_shows_nothing(
    work: Callable[[bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    work(True)
    assert capsys.readouterr().err == ""
