"""Command line: ``python -m reports build [FOLDER ...]`` and ``python -m reports compare A B``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.build import PAGE, build, build_page, results_folders
from reports.compare import compare
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
    building.add_argument(
        "--page",
        type=Path,
        default=PAGE,
        help=f"of all folders together, where none is named (default: {PAGE.name})",
    )
    comparing = commands.add_parser("compare", help="the rows of two results folders side by side")
    comparing.add_argument("first", metavar="A", type=Path, help="a folder or its records.jsonl")
    comparing.add_argument("second", metavar="B", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "compare":
            print(compare(options.first, options.second), end="")
            return 0
        folders = options.folders or results_folders()
        written = [path for folder in folders for path in build(folder)]
        if not options.folders:
            written.append(build_page(folders, options.page))
        for path in written:
            print(path)
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
