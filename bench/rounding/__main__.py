"""Draw under every condition and write the record: ``python -m bench.rounding --work FOLDER``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ablations.machine.records import stamp

from .conditions import CONDITIONS, Condition, by_name
from .draw import draws_file
from .table import markdown, rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reports" / "results" / "rounding"


def main(arguments: Sequence[str] | None = None) -> int:
    """Whatever the work folder holds already is not drawn again."""
    names = [condition.name for condition in CONDITIONS]
    parser = argparse.ArgumentParser(prog="python -m bench.rounding", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of banks and samples")
    parser.add_argument("--samples", type=int, default=256, help="per condition and guidance")
    parser.add_argument("--steps", type=int, default=400, help="training steps of a bank")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--only", nargs="+", metavar="CONDITION", choices=names, default=names,
        help="conditions to draw beside the reference, which are all by default",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args(arguments)
    chosen = chain(options.only)
    files = {c.name: draws_file(options.work, c, options.samples, options.steps) for c in chosen}

    def draw(conditions: Sequence[Condition]) -> None:
        for condition in conditions:
            if not files[condition.name].is_file():
                print(f"drawing: {condition.name}", flush=True)
                program = [sys.executable, "-m", "bench.rounding.draw", str(options.work.resolve())]
                program += [condition.name, str(options.samples), str(options.steps)]
                subprocess.run(program, env=condition.environment(), cwd=ROOT, check=True)

    # The first trains the banks, and the first of the fast path compiles what the others load.
    draw(chosen[:1])
    parts = [[c for c in chosen[1:] if c.fast], *([c] for c in chosen[1:] if not c.fast)]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(draw, parts))
    print(write(options.results, files, options.steps))
    return 0


def chain(names: Sequence[str]) -> list[Condition]:
    """The conditions of these names and those that they are compared with, in the table's order."""
    needed = set(names) | {by_name(name).against for name in names} | {CONDITIONS[0].name}
    return [condition for condition in CONDITIONS if condition.name in needed]


def write(folder: Path, files: dict[str, Path], steps: int) -> Path:
    """The record as JSON and its tables as Markdown, of what was drawn into the files."""
    drawn: dict[str, dict[str, Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        with np.load(path) as file:
            drawn[name] = {key: file[key] for key in file.files if key != "about"}
            about[name] = json.loads(str(file["about"]))
    head = {"machine": machine(about[CONDITIONS[0].name]["instruction_set"]), "steps": steps}
    found = rows(drawn, about)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found)
    (folder / "rounding.json").write_text(f'{json.dumps(head)[:-1]},\n "rows": [\n{lines}\n]}}\n')
    target = folder / "rounding.md"
    target.write_text(markdown({**head, "rows": found}))
    return target


def machine(instructions: str) -> dict[str, Any]:
    """What the samples were drawn on: CPU, its instructions, versions, commit."""
    made = stamp(0.0)
    return {
        "cpu": made["hardware"]["cpu"],
        "cores": made["hardware"]["cores"],
        "instruction_set": instructions,
        **made["packages"],
        "commit": made["commit"],
        "dirty": made["dirty"],
        "date": made["created"][:10],
    }


if __name__ == "__main__":
    raise SystemExit(main())
