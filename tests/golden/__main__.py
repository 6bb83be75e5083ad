"""Command line: ``python -m tests.golden [DIR]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.golden.check import Outcome, UnreadableError, check, kind_of
from tests.golden.training_free import MOST

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every recorded file of a folder and print its largest relative error.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        Exit status: 0 if all agree, 1 on a miss, 2 if there is nothing to check or a file
        cannot be read, said in one line on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description="Check the library against golden figures."
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=Path(__file__).parent,
        help="holds recorded .npz files; by default those of the tests",
    )
    folder: Path = parser.parse_args(arguments).folder
    paths = sorted(folder.glob("*.npz"))
    if not any(map(kind_of, paths)):
        print(f"{folder}: no golden files to check here", file=sys.stderr)
        return 2
    status = 0
    for path in paths:
        if kind_of(path) is None:
            print(f"pass  {path.name}  passed over: not of a kind checked here", flush=True)
            continue
        try:
            outcome = check(path)
        except UnreadableError as error:
            print(f"{path}: {error}", file=sys.stderr)
            status = 2
            continue
        print(_line(path, outcome), flush=True)
        status = max(status, 0 if outcome.agrees else 1)
    return status


def _line(path: Path, outcome: Outcome) -> str:
    verdict = "ok  " if outcome.agrees else "MISS"
    if outcome.refusal:
        return f"{verdict}  {path.name}  {outcome.refusal}"
    figure, error = outcome.worst
    line = f"{verdict}  {path.name}  largest relative error {error:.2e} ({figure})"
    if not outcome.agrees:
        line += f", tolerance {outcome.allowed(figure):.0e}"
        if outcome.resolutions.get(figure, 0.0) >= MOST:
            line += ", of a step that rounding alone moves as much: no recording of it is a test"
    if outcome.unchecked:
        line += f"; not checked: {', '.join(outcome.unchecked)}"
    return line


if __name__ == "__main__":
    sys.exit(main())
