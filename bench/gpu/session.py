"""Time that is left, and the record that grows on disk."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Deadline", "OutOfTimeError", "Record", "alarm"]


class OutOfTimeError(BaseException):
    """Raised wherever a stage is when it has overrun; no ``except Exception`` swallows it."""


@dataclass(frozen=True)
class Deadline:
    """A point in time, by the system's clock, which processes share."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.time() + seconds)

    @property
    def left(self) -> float:
        """Seconds, negative once it has passed."""
        return self.at - time.time()

    def share(self, part: float) -> Deadline:
        """The deadline of a part of the time that is left."""
        return Deadline.after(max(0.0, self.left) * part)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTimeError` in the main thread after some seconds."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Record:
    """One stage's findings, in a file that is written anew with every one of them.

    Attributes:
        path: of the JSON file.
        about: the machine.
        rows: findings.
        errors: what failed, with tracebacks.
        left_out: what there was no time for, or no package.
        notes: anything else by name.
    """

    path: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, row: dict[str, Any], line: str = "") -> None:
        """Keep a finding, and say it."""
        self.rows.append(row)
        if line:
            print(f"  {line}")
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append(f"{what}: {why}")
        self.write()

    def attempt(self, name: str, function: Callable[[], Any]) -> Any:
        """The function's result, or None where it fails, which is recorded."""
        try:
            return function()
        except Exception as error:  # noqa: BLE001 whatever a driver or a compiler raises
            self.fail(name, error)
            return None

    def fail(self, name: str, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        first = (str(error).strip().splitlines() or [""])[0][:160]
        self.errors.append({"what": name, "error": type(error).__name__, "traceback": text[-6000:]})
        print(f"  FAILED {name}: {type(error).__name__}: {first}")
        sys.stdout.flush()
        self.write()

    def write(self) -> None:
        document = {
            "machine": self.about, **self.notes, "rows": self.rows, "errors": self.errors,
            "left_out": self.left_out,
        }  # fmt: skip
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(document, indent=1, default=str))
        scratch.replace(self.path)

    def summary(self) -> str:
        name = self.path.stem
        return (
            f"{name}: {len(self.rows)} rows, {len(self.errors)} failed, "
            f"{len(self.left_out)} left out"
        )
