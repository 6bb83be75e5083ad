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

from .conditions import CONDITIONS, Condition
from .draw import draws_file
from .table import markdown, rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reports" / "results" / "rounding"


def main(arguments: Sequence[str] | None = None) -> int:
    """Whatever the work folder holds already is not drawn again."""
    parser = argparse.ArgumentParser(prog="python -m bench.rounding", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of banks and samples")
    parser.add_argument("--samples", type=int, default=256, help="per condition and guidance")
    parser.add_argument("--steps", type=int, default=400, help="training steps of a bank")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args(arguments)

    def run(condition: Condition) -> None:
        if draws_file(options.work, condition, options.samples, options.steps).is_file():
            return
        print(f"drawing: {condition.name}", flush=True)
        numbers = (str(options.samples), str(options.steps))
        program = [sys.executable, "-m", "bench.rounding.draw", str(options.work.resolve())]
        program += [condition.name, *numbers]
        subprocess.run(program, env=condition.environment(), cwd=ROOT, check=True)

    def run_all(conditions: Sequence[Condition]) -> None:
        for condition in conditions:
            run(condition)

    # The first trains the banks, and the first of the fast path compiles what the others load.
    first, *others = CONDITIONS
    run(first)
    chains = [[condition for condition in others if condition.fast]]
    chains += [[condition] for condition in others if not condition.fast]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run_all, chains))

    drawn: dict[str, dict[str, Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for condition in CONDITIONS:
        with np.load(draws_file(options.work, condition, options.samples, options.steps)) as file:
            drawn[condition.name] = {name: file[name] for name in file.files if name != "about"}
            about[condition.name] = json.loads(str(file["about"]))
    found = {
        "machine": _machine(about["reference"]["instruction_set"]),
        "steps": options.steps,
        "rows": rows(drawn, about),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in found["rows"])
    head = json.dumps({key: found[key] for key in ("machine", "steps")})
    (options.results / "rounding.json").write_text(f'{head[:-1]},\n "rows": [\n{lines}\n]}}\n')
    (options.results / "rounding.md").write_text(markdown(found))
    print(options.results / "rounding.md")
    return 0


def _machine(instructions: str) -> dict[str, Any]:
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
