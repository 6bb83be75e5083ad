"""Command line: ``python -m reports build [FOLDER ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.build import build, results_folders
from reports.records import RecordError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the reports and print what was written.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        Exit status: 0, or 2 if records are missing or malformed, said in one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="reports", description="Tables and figures from records.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="write the tables and figures of results folders")
    building.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help="holds records.jsonl; by default every such folder below reports/results",
    )
    options = parser.parse_args(arguments)
    try:
        for folder in options.folders or results_folders():
            for path in build(folder):
                print(path)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
