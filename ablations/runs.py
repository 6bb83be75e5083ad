"""Running sweeps: from options to cells, records and reports."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ablations import preflight
from ablations.cells import launched
from ablations.cells.curves import Claim
from ablations.cells.plugins import defines_guide
from ablations.cells.results import Result, Row
from ablations.changes import Changes
from ablations.effects import unheeded
from ablations.errors import UserError
from ablations.machine import engine, records
from ablations.machine.log import LOG, logged_to
from ablations.machine.pools import LocalPool, Pool, RayPool
from ablations.machine.store import Store
from ablations.settings.catalogue import BUDGETS, REHEARSAL, check_names, load_setting
from ablations.settings.plugins import load_plugins
from ablations.settings.public import PUBLIC
from ablations.settings.setting import RunPath, Setting
from ablations.sweeps import HEADLINE, SWEEPS, Lab, is_row
from ablations.sweeps.lab import TOGETHER
from ppap.compute.compiler import can_compile

__all__ = [
    "GROUPS",
    "OUTPUT",
    "RESULTS",
    "ROOT",
    "Options",
    "build_reports",
    "execute",
    "open_store",
    "report",
    "tell_failures",
]

GROUPS = {"headline": HEADLINE, "all": tuple(SWEEPS)}
ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / ".ppap" / "results"
"""Where runs put their results: git ignores it."""
RESULTS = ROOT / "reports" / "results"
"""The committed ones, which ``python -m ablations publish`` alone writes."""
SHORT = ("smoke", "default")
"""Budgets whose first run on a machine would spend on compiling what it saves."""
AMOUNTS = ("seeds", "samples", "steps", "synthetic")
"""Of a budget, what an option can change."""
EXIT_FAILED, EXIT_USER = 1, 2


@dataclass(frozen=True)
class Options:
    """What to run, and how; None takes the default that the field's comment names.

    Raises:
        UserError: for a sweep, setting, predictor or number that cannot be; or a predictor, task
            or plugin that is named twice.
    """

    sweeps: tuple[str, ...] = ()  # headline; all at the budget smoke
    setting: str = "fashion"
    budget: str | None = None  # the setting's
    predictors: tuple[str, ...] | None = None  # the setting's
    tasks: tuple[str, ...] = ()  # the setting's
    rows: tuple[str, ...] = ()  # all
    scales: tuple[float, ...] = ()  # the budget's
    changes: tuple[str, ...] = ()  # none; field=value each
    plugin: tuple[str, ...] = ()  # none
    seeds: int | None = None  # the budget's, like the next three
    samples: int | None = None
    steps: int | None = None
    synthetic: int | None = None
    engine: Literal["local", "ray", "accelerate"] = "local"
    ray_address: str | None = None  # a Ray of its own on this machine
    workers: int | None = None  # one per core
    store: str | None = None  # $PPAP_STORE, or .ppap/store
    output: Path | None = None  # .ppap/results/<setting>-<budget>
    dry_run: bool = False
    rehearse: bool = False
    path: RunPath | None = None  # fast, but for short runs
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugin", load_plugins(self.plugin))
        check_names()
        if self.rehearse and (self.setting.removesuffix(REHEARSAL) not in PUBLIC or self.budget):
            raise UserError(
                "--rehearse is for a public setting, and has a budget of its own",
                f"choose --setting {', '.join(PUBLIC)} and no budget",
            )
        if self.rehearse and not self.setting.endswith(REHEARSAL):
            object.__setattr__(self, "setting", self.setting + REHEARSAL)
        chosen = self.sweeps or (("all",) if self.budget == "smoke" else ("headline",))
        words = [name for word in chosen for name in self._sweeps_of(word)]
        for kind, name, known in (
            *(("sweep", word, (*SWEEPS, *GROUPS)) for word in words),
            ("budget", self.budget or "default", tuple(BUDGETS)),
            ("engine", self.engine, ("local", "ray", "accelerate")),
        ):
            if name not in known:
                raise UserError(f"unknown {kind} {name!r}", f"choose from {', '.join(known)}")
        for name in (*AMOUNTS, "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}", "raise it")
        for name in ("predictors", "tasks", "plugin"):
            named = getattr(self, name) or ()
            if twice := [word for word in dict.fromkeys(named) if named.count(word) > 1]:
                raise UserError(f"--{name} has {twice[0]!r} twice", "list each once")
        if self.ray_address and self.engine != "ray":
            raise UserError("--ray-address is for --engine ray", "add that, or leave it out")
        if self.workers and self.engine == "accelerate":
            raise UserError(
                "--workers is not for --engine accelerate, whose processes are those launched",
                "leave it out",
            )
        object.__setattr__(self, "names", tuple(dict.fromkeys(words)))

    def _sweeps_of(self, word: str) -> tuple[str, ...]:
        """The sweeps of a group that the setting can run, or the one that is named."""
        if word in GROUPS:
            return tuple(name for name in GROUPS[word] if self._suits(name))
        if lacking := self._lacking(word):
            raise UserError(
                f"sweep {word} needs the task {lacking[0]}, which {self.setting} does not have",
                "choose --setting scenes",
            )
        return (word,)

    def _suits(self, name: str) -> bool:
        fixed = load_setting(self.setting).published is not None
        return not self._lacking(name) and not (fixed and SWEEPS[name].tunes)

    def _lacking(self, name: str) -> list[str]:
        needs = SWEEPS[name].needs if name in SWEEPS else ()
        return [task for task in needs if task not in load_setting(self.setting).tasks]

    def lab(self) -> Lab:
        """What the sweeps are built with; a budget that an option changes has a name of its own."""
        setting = load_setting(self.setting)
        chosen = self.budget or setting.budget
        setting = replace(setting, path=self._path(chosen))
        budget = BUDGETS[chosen]
        given = {name: getattr(self, name) for name in AMOUNTS if getattr(self, name) is not None}
        if self.scales:
            given["scales"] = self.scales
        changes = Changes.parse(self.changes, given)
        return Lab(
            setting,
            changes.applied(budget),
            changes.name(budget, chosen),
            self._predictors(setting),
            rows=self.rows,
            tasks=self._tasks(setting),
            plugins=tuple(name for name in self.plugin if defines_guide(name)),
            scales=changes.budget.get("scales", ()),
            changes=tuple(changes.recipe.items()),
        )

    def _path(self, budget: str) -> RunPath:
        """Of a run: short ones take no longer than compiling for them would."""
        short = budget in SHORT or self.setting.endswith(REHEARSAL)
        wanted = self.path or ("plain" if short else "fast")
        return wanted if wanted == "plain" or can_compile() else "plain"

    def results(self, lab: Lab) -> dict[str, list[Result]]:
        """What the sweeps are made of, by sweep; without those that have none of the rows.

        Raises:
            UserError: if no sweep has a row that was asked for.
        """
        found = self._built(lab)
        labels = _labels(found.values())
        for wanted in self.rows:
            if not any(is_row(label, (wanted,)) for label in labels):
                known = _labels(self._built(replace(lab, rows=())).values())
                raise UserError(
                    f"no sweep of {', '.join(self.names)} has a row {wanted!r}",
                    f"choose from {'; '.join(known)}",
                )
        return {name: cells for name, cells in found.items() if cells}

    def notes(self, lab: Lab) -> list[str]:
        """A line for each option of which some sweeps take no notice.

        Raises:
            UserError: for one that changes nothing in any sweep.
        """
        budget = BUDGETS[self.budget or lab.setting.budget]
        return unheeded(self._built, lab, budget, self.predictors or ())

    def _built(self, lab: Lab) -> dict[str, list[Result]]:
        return {name: list(SWEEPS[name].build(lab)) for name in self.names}

    def folder(self, lab: Lab) -> Path:
        """Where records and reports are put."""
        name = lab.setting.name.removesuffix(REHEARSAL)
        return self.output or OUTPUT / f"{name}-{lab.budget_name}"

    def _tasks(self, setting: Setting) -> tuple[str, ...]:
        together = [TOGETHER] if len(setting.tasks) > 1 else []
        _require_of(setting, "task", self.tasks, (*setting.tasks, *together))
        return self.tasks

    def _predictors(self, setting: Setting) -> tuple[str, ...]:
        chosen = self.predictors or setting.predictors
        _require_of(setting, "predictor", chosen, setting.predictors)
        return chosen


def _labels(sweeps: Iterable[Iterable[Result]]) -> list[str]:
    """Of the rows and curves: a claim comes with its curves, and not by its name."""
    cells = (cell for sweep in sweeps for cell in sweep if not isinstance(cell, Claim))
    return list(dict.fromkeys(cell.about.method for cell in cells))


def _require_of(setting: Setting, kind: str, chosen: Iterable[str], known: Iterable[str]) -> None:
    """Raises a UserError for a name that the setting does not have."""
    known = tuple(known)
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(
            f"setting {setting.name} has no {kind} {unknown[0]!r}",
            f"choose from {', '.join(known)}",
        )


def open_store(url: str | None) -> Store:
    """The store that is named, or the default one.

    Raises:
        UserError: if it cannot be reached or created.
    """
    root = url or os.environ.get("PPAP_STORE") or str(ROOT / ".ppap" / "store")
    if root.startswith("memory:"):
        raise UserError(
            f"{root} is this process's alone, and workers are others", "name a folder with --store"
        )
    try:
        return Store(root)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"no store at {root}: {error}", "name another with --store") from error


def execute(options: Options) -> int:
    """Compute the sweeps, write their records, build the reports; the exit status."""
    began = time.monotonic()
    if not options.dry_run:
        preflight.require_packages()
    lab = options.lab()
    by_sweep, notes = options.results(lab), options.notes(lab)
    targets = [result for results in by_sweep.values() for result in results]
    store, folder = open_store(options.store), options.folder(lab)
    todo = engine.plan(targets, store)
    workers = options.workers or os.cpu_count() or 1
    told = (
        f"{', '.join(by_sweep)} on {lab.setting.name}, budget {lab.budget_name}: "
        f"{len(todo.todo)} cells to compute on the {lab.setting.path} path, {todo.cached} cached, "
        f"about {todo.seconds / workers / 60:.0f} min; results go to {folder}"
    )
    print(*(f"note: {note}" for note in notes), told, sep="\n", flush=True)
    if options.dry_run:
        _tell_plan(by_sweep, todo, store)
        return 0
    if options.engine == "accelerate" and not launched.is_main_process():
        launched.run(targets, store)
        return 0
    _look_ahead(lab, todo, store, folder)
    with logged_to(folder):
        LOG.info("\n".join((*notes, told)))
        if options.engine == "accelerate":
            outcome = launched.run(targets, store)
        else:
            outcome = engine.run(targets, store, pool=_pool(options, store) if todo.todo else None)
        for failure in outcome.failures:
            LOG.error("failed: %s", failure.cell.label(), exc_info=failure.error)
    finished = [result for result in targets if store.holds(result.key)]
    sweeps = [SWEEPS[name].record(lab) for name in by_sweep]
    failures = _failure_records(outcome, lab, folder, {cell.label() for cell in finished})
    report([*sweeps, *failures], finished, store, folder)
    minutes, seconds = divmod(time.monotonic() - began, 60)
    print(f"{outcome.computed} cells computed in {minutes:.0f} min {seconds:02.0f} s; see {folder}")
    return tell_failures(outcome)


def _look_ahead(lab: Lab, todo: engine.Plan, store: Store, folder: Path) -> None:
    """What the end of the run will need; see :mod:`ablations.preflight`."""
    preflight.require_same_results(folder, lab.setting.name, lab.budget_name)
    needed = [(folder, preflight.RESULTS_BYTES)]
    needed += [(Path(store.root), todo.size)] * store.local
    preflight.require_room(needed)
    preflight.require_writable(store if todo.todo else None, folder)


def _pool(options: Options, store: Store) -> Pool:
    if options.engine == "ray":
        return RayPool(store, options.ray_address, options.workers)
    return LocalPool(store, options.workers)


def _tell_plan(by_sweep: dict[str, list[Result]], todo: engine.Plan, store: Store) -> None:
    """The cells of a dry run, and how much of each sweep is there."""
    for cell in todo.todo:
        print(f"  {cell.key}  {cell.seconds():6.0f} s  {cell.label()}")
    for name, results in by_sweep.items():
        done = sum(store.holds(result.key) for result in results)
        print(f"{name}: {done} of {len(results)} results are there")


def _failure_records(
    outcome: engine.Outcome, lab: Lab, folder: Path, finished: set[str]
) -> list[dict[str, Any]]:
    """One record per failed cell; and of each earlier failure whose results are there by now.

    Results are told by their labels: code that has changed gives a cell another key.
    """
    common = {"kind": "failure", "setting": lab.setting.name, "budget": lab.budget_name}
    found = []
    for failure in outcome.failures:
        results = [cell for cell in (failure.cell, *failure.lost) if isinstance(cell, Result)]
        found.append(
            common
            | {
                "key": f"failure-{failure.cell.key}",
                "sweep": results[0].about.sweep if results else "none",
                "label": f"{failure.cell.label()} ({failure.cell.key})",
                "reason": failure.reason,
                "needed_by": [cell.label() for cell in results],
                "resolved": False,
            }
        )
    now = {record["key"] for record in found}
    for key, record in records.read(folder).items():
        earlier = record.get("kind") == "failure" and not record["resolved"] and key not in now
        if earlier and finished.issuperset(record["needed_by"]):
            found.append(record | {"resolved": True})
    return found


def report(
    more: Iterable[dict[str, Any]], finished: list[Result], store: Store, folder: Path
) -> None:
    """Write the records and pictures of finished results, and build their folder's reports."""
    from ablations.outcomes import update_outcomes

    artifacts = [(result, store.get(result.key)) for result in finished]
    grids = {
        artifact.meta["record"]["array"]: artifact.arrays["grid"]
        for _, artifact in artifacts
        if "grid" in artifact.arrays
    }
    if grids:  # before the records that name them
        records.write_grids(folder, grids)
    records.update(folder, [*more, *(artifact.meta["record"] for _, artifact in artifacts)])
    rows = [result for result in finished if isinstance(result, Row)]
    if rows and (missing := update_outcomes(folder, rows, store)):
        print(f"outcomes of {missing} rows' samples are no longer in the store")
    if artifacts:
        build_reports(folder)


def build_reports(folder: Path) -> None:
    """Write a results folder's tables, figures and page, and tell of each.

    One run at a time: one that had read its records earlier would put its page over the newer.
    """
    from reports.build import build

    with records.locked(folder):
        for path in build(folder):
            print(f"wrote {path}")


def tell_failures(outcome: engine.Outcome) -> int:
    """One line per cause; the exit status."""
    causes: dict[str, list[engine.Failure]] = defaultdict(list)
    others = []
    for failure in outcome.failures:
        if isinstance(failure.error, UserError):
            causes[str(failure.error)].append(failure)
        else:
            others.append(failure)
    for cause in sorted(causes):
        print(f"error: {cause}", file=sys.stderr)
    for failure in others:
        label = f"{failure.cell.label()} ({failure.cell.key})"
        print(f"failed: {label}: {failure.reason}", file=sys.stderr)
    if outcome.lost:
        print(f"{outcome.lost} cells that need these were skipped", file=sys.stderr)
    if others:
        return EXIT_FAILED
    return EXIT_USER if causes else 0
