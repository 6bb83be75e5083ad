"""Command line: ``python -m reports build`` and ``python -m reports compare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.build import (
    KERNELS,
    PAGE,
    build,
    build_all,
    build_kernels,
    build_page,
    results_folders,
)
from reports.compare import compare
from reports.errors import UserError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the reports and print what was written.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        Exit status: 0, or 2 if records are missing or malformed, or a file cannot be
        written; said in one line on stderr.
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
        help="of all folders together (default: only where no folder is named, reports/index.html)",
    )
    comparing = commands.add_parser(
        "compare", help="two results folders side by side: rows, curves and claims"
    )
    comparing.add_argument("first", metavar="A", type=Path, help="a folder or its records.jsonl")
    comparing.add_argument("second", metavar="B", type=Path)
    comparing.add_argument("--csv", metavar="FILE", type=Path, help="write the changes there too")
    options = parser.parse_args(arguments)
    try:
        if options.command == "compare":
            comparison = compare(options.first, options.second)
            if options.csv:
                options.csv.write_text(comparison.csv(), encoding="utf-8")
            print(comparison.markdown(), end="")
            return 0
        for path in _build(options.folders, options.page):
            print(path)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _build(named: list[Path], target: Path | None) -> list[Path]:
    if not named:
        folders = results_folders()
        written = [path for folder in folders for path in build(folder)]
        return [
            *written,
            *build_kernels(folders[0].parent / KERNELS),
            *build_page(folders, target or PAGE),
        ]
    if target:
        return build_all(named, target)
    return [path for folder in named for path in build(folder)]


if __name__ == "__main__":
    sys.exit(main())
