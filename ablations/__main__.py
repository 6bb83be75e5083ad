"""Command line: ``python -m ablations run methods --setting fashion --budget default``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ablations import engine, records
from ablations.errors import UserError
from ablations.results import Grid, Result
from ablations.settings import BUDGETS, Budget, Setting, load_setting
from ablations.store import Store
from ablations.sweeps import HEADLINE, SWEEPS, Lab

GROUPS = {"headline": HEADLINE, "all": tuple(SWEEPS)}
ROOT = Path(__file__).resolve().parent.parent
EXIT_FAILED, EXIT_USER = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 (a cell failed) or 2 (user's to mend)."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("interrupted; run again to continue where it stopped", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Compute the sweeps, append their records, build the reports."""
    began = time.monotonic()
    setting = load_setting(options.setting)
    budget = _budget(options)
    predictors = _predictors(options, setting)
    name = options.budget if budget == BUDGETS[options.budget] else f"{options.budget}-custom"
    lab = Lab(setting, budget, name, predictors)
    sweeps = list(dict.fromkeys(s for word in options.sweeps for s in GROUPS.get(word, (word,))))
    targets = [result for sweep in sweeps for result in SWEEPS[sweep].build(lab)]
    store = _store(options.store)
    folder = options.output or ROOT / "reports" / "results" / f"{setting.name}-{name}"
    todo = engine.plan(targets, store)
    workers = options.workers or os.cpu_count() or 1
    print(
        f"{', '.join(sweeps)} on {setting.name}, budget {name}: {len(todo.todo)} cells to "
        f"compute, {todo.cached} cached, about {todo.seconds / workers / 60:.0f} min"
    )
    if options.dry_run:
        for cell in todo.todo:
            print(f"  {cell.key}  {cell.seconds():6.0f} s  {cell.label()}")
        return 0
    outcome = engine.run(targets, store, options.workers)
    finished = [result for result in targets if store.holds(result.key)]
    _report([SWEEPS[sweep].record(lab) for sweep in sweeps], finished, store, folder)
    minutes, seconds = divmod(time.monotonic() - began, 60)
    print(f"{outcome.computed} cells computed in {minutes:.0f} min {seconds:02.0f} s; see {folder}")
    return _tell_failures(outcome)


def _tell_failures(outcome: engine.Outcome) -> int:
    """One line per cause; the exit status."""
    mends = {str(error) for error in outcome.failures.values() if isinstance(error, UserError)}
    for mend in sorted(mends):
        print(f"error: {mend}", file=sys.stderr)
    others = {k: e for k, e in outcome.failures.items() if not isinstance(e, UserError)}
    for label, error in others.items():
        print(f"failed: {label}: {type(error).__name__}: {error}", file=sys.stderr)
    if outcome.skipped:
        print(f"{len(outcome.skipped)} cells that need these were skipped", file=sys.stderr)
    if others:
        return EXIT_FAILED
    return EXIT_USER if mends else 0


def _report(
    sweeps: list[dict[str, Any]], finished: list[Result], store: Store, folder: Path
) -> None:
    from reports.build import build

    artifacts = [(result, store.get(result.key)) for result in finished]
    records.append(folder, [*sweeps, *(artifact.meta["record"] for _, artifact in artifacts)])
    grids = {
        artifact.meta["record"]["array"]: artifact.arrays["grid"]
        for result, artifact in artifacts
        if isinstance(result, Grid)
    }
    if grids:
        records.write_grids(folder, grids)
    if artifacts:
        for path in build(folder):
            print(f"wrote {path}")


def show_list(options: argparse.Namespace) -> int:
    """Print what can be run."""
    del options
    for name, sweep in SWEEPS.items():
        print(f"{name}{' *' * sweep.headline}: {sweep.title}")
    print("* headline")
    for name, budget in BUDGETS.items():
        print(f"--budget {name}: {budget}")
    return 0


def _budget(options: argparse.Namespace) -> Budget:
    """The named budget with what the command line changes in it."""
    changes = {
        field: getattr(options, field)
        for field in ("seeds", "samples", "steps", "synthetic")
        if getattr(options, field) is not None
    }
    return replace(BUDGETS[options.budget], **changes)


def _predictors(options: argparse.Namespace, setting: Setting) -> tuple[str, ...]:
    chosen = tuple(options.predictors or setting.predictors)
    if unknown := [name for name in chosen if name not in setting.predictors]:
        raise UserError(
            f"setting {setting.name} has no predictor {unknown[0]!r}",
            f"choose from {', '.join(setting.predictors)}",
        )
    return chosen


def _store(path: Path | None) -> Store:
    root = path or Path(os.environ.get("PPAP_STORE") or ROOT / ".ppap" / "store")
    try:
        return Store(root)
    except OSError as error:
        raise UserError(f"no store at {root}: {error}", "name another with --store") from error


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ablations", description=__doc__)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="run sweeps and build their reports")
    running.set_defaults(command=run)
    running.add_argument(
        "sweeps",
        nargs="+",
        choices=[*SWEEPS, *GROUPS],
        metavar="SWEEP",
        help=f"{', '.join(SWEEPS)}; headline for {', '.join(HEADLINE)}; or all",
    )
    running.add_argument("--setting", default="fashion", help="scale of the experiment")
    running.add_argument("--budget", default="default", choices=BUDGETS, help="how much is run")
    running.add_argument("--predictors", nargs="+", help="only these of the setting's")
    running.add_argument("--seeds", type=int, help="training seeds per row")
    running.add_argument("--samples", type=int, help="images per seed and row")
    running.add_argument("--steps", type=int, help="training steps per model")
    running.add_argument("--synthetic", type=int, help="images drawn for data-free transfer")
    running.add_argument("--workers", type=int, help="processes; one per core by default")
    running.add_argument("--store", type=Path, help="artifacts (default: $PPAP_STORE, .ppap/store)")
    running.add_argument("--output", type=Path, help="results folder")
    running.add_argument("--dry-run", action="store_true", help="print the cells and stop")
    commands.add_parser("list", help="what can be run").set_defaults(command=show_list)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
