"""Command line of the ablations: ``python -m ablations run methods --budget default``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ablations import inspection, preflight
from ablations.configuration import arguments_of
from ablations.errors import UserError
from ablations.runs import EXIT_USER, GROUPS, OUTPUT, RESULTS, Options, execute, open_store
from ablations.settings.catalogue import BUDGETS
from ablations.sweeps import HEADLINE, SWEEPS
from ablations.sweeps.lab import TOGETHER
from ppap.files.checkpoints import CheckpointError

EXIT_INTERRUPTED = 130
EXAMPLES = """\
examples:
  python -m ablations run headline                     the default run, 35 minutes on 2 cores
  python -m ablations run --budget smoke               every sweep, a quarter of an hour
  python -m ablations run rank --predictors vit        one sweep, one predictor
  python -m ablations run methods --rows naive 'ppap*' --scales 4 8 16 --set temperature=0.5
  python -m ablations run --config mine.toml           the same, written down
  python -m ablations run methods --budget full --engine ray --ray-address auto --store s3://b/p
  accelerate launch -m ablations run methods --engine accelerate
  python -m ablations run methods --setting imagenet256
  python -m ablations run methods --setting imagenet256 --rehearse
  python -m ablations run methods --dry-run            what would be computed, and how long
  python -m ablations compare A B                      two results folders side by side
  python -m ablations score samples/ --name theirs     images that other code has made
  python -m ablations publish A                        put a run among the committed results
  python -m ablations retime A                         what an image costs by each method, here
  python -m ablations show 3fa9                        where a result comes from
  python -m ablations gc                               what no record needs; --delete removes it
"""
SHARED = {
    "setting": "scale of the experiment",
    "budget": f"how much is run: {', '.join(BUDGETS)}",
    "predictors": "only these of the setting's (default: all)",
    "tasks": "only what these of the setting's guide by themselves, "
    f"or {TOGETHER!r} together (default: all of it)",
    "rows": "only rows with these labels, which may have a * (default: all)",
    "scales": "of guidance: one for all rows, or several to select each row's from "
    "(default: the budget's)",
    "changes": "field=value, of the budget or of how experts are made; part of the records' name",
    "plugin": "modules with a sweep, predictor, denoiser, setting or guide of your own",
    "seeds": "training seeds per row (default: the budget's)",
    "samples": "images per seed and row (default: the budget's)",
    "steps": "training steps per model (default: the budget's)",
    "synthetic": "images drawn for data-free transfer (default: the budget's)",
    "store": "folder or URL of artifacts (default: $PPAP_STORE, or .ppap/store)",
}
RUN = {
    "engine": "local: processes of this machine; ray: tasks of a cluster (extra 'cluster'); "
    "accelerate: under accelerate launch or torchrun, banks are trained by all processes",
    "ray_address": "of the cluster (default: a Ray of its own on this machine)",
    "workers": "cells at a time (default: one per core)",
    "output": "results folder (default: .ppap/results/SETTING-BUDGET)",
}
FLAGS = {"changes": "set"}
SEVERAL = ("predictors", "tasks", "rows", "scales", "changes", "plugin")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 (a cell failed) or 2 (user's to mend)."""
    try:
        parsed = _parsed(sys.argv[1:] if arguments is None else arguments)
        return int(parsed.pop("command")(parsed))
    except (UserError, CheckpointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full by now, a folder that has gone
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("interrupted; run again to continue where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(given: dict[str, Any]) -> int:
    return execute(_options(given))


def _list(given: dict[str, Any]) -> int:
    for name, sweep in SWEEPS.items():
        print(f"{name}{' *' * sweep.headline}: {sweep.title}")
    print("* headline, the default run")
    for name, budget in BUDGETS.items():
        print(
            f"--budget {name}: {budget.seeds} seed{'s' * (budget.seeds > 1)} x "
            f"{budget.samples:,} samples per row; {budget.steps:,} training steps of "
            f"{budget.batch} images, {budget.synthetic:,} of them synthetic; "
            f"scales {', '.join(f'{scale:g}' for scale in budget.scales)}"
        )
    return 0


def _compare(given: dict[str, Any]) -> int:
    preflight.require_packages()
    from reports.compare import compare

    comparison = compare(given["first"], given["second"])
    if given["csv"]:
        given["csv"].write_text(comparison.csv(), encoding="utf-8")
    print(comparison.markdown(), end="")
    return 0


def _publish(given: dict[str, Any]) -> int:
    preflight.require_packages()
    from ablations.publish import publish_all

    for path in publish_all(given["folders"], given["into"]):
        print(path)
    return 0


def _score(given: dict[str, Any]) -> int:
    from ablations.score import score

    return score(
        given["folder"],
        given["setting"],
        name=given["name"],
        in_order=given["in_order"],
        plugin=tuple(given["plugin"]),
        store_url=given["store"],
        output=given["output"],
    )


def _retime(given: dict[str, Any]) -> int:
    from ablations.retime import retime

    return retime(
        given["folder"],
        rows=given["rows"],
        plugin=given["plugin"],
        store_url=given["store"],
        workers=given["workers"],
        output=given["output"],
    )


def _show(given: dict[str, Any]) -> int:
    store = open_store(given["store"])
    for line in inspection.provenance_lines(store, given["results"], given["key"]):
        print(line)
    return 0


def _status(given: dict[str, Any]) -> int:
    options = _options(given)
    for line in inspection.status_lines(open_store(options.store), options):
        print(line)
    return 0


def _gc(given: dict[str, Any]) -> int:
    store = open_store(given["store"])
    if not given["older_than"] >= 0:
        raise UserError(
            f"--older-than must be at least 0 minutes, got {given['older_than']:g}", "raise it"
        )
    found = inspection.garbage(store, given["results"], 60 * given["older_than"])
    for line in inspection.garbage_lines(found):
        print(line)
    if given["delete"]:
        for path, _ in found:
            store.remove(path)
        print("removed")
    elif found:
        print("nothing was removed; add --delete to do it")
    return 0


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """What was asked for; a file that is named says what the command line does not."""
    parsed = vars(_parser().parse_args(arguments))
    if path := parsed.get("config"):
        words = arguments_of(path)
        try:
            defaults = vars(_parser().parse_args(["run", *words]))  # of which status may be asked
        except UserError as error:
            raise UserError(f"{path}: {error}", "mend it, or name another file") from error
        del defaults["command"], defaults["config"]
        parsed = vars(_parser(defaults).parse_args(arguments))
    return parsed


def _options(given: dict[str, Any]) -> Options:
    """Typed and checked; a word list becomes a tuple."""
    named = {field.name for field in fields(Options) if field.init}
    return Options(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in named}
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help")


def _parser(defaults: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """The command line; what it does not say of a run is as in ``defaults``, if there are any."""
    parser = _Parser(
        prog="python -m ablations",
        description="Sweeps of plug-and-play diffusion guidance: run them, look at them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    running = commands.add_parser("run", help="run sweeps and build their reports")
    running.set_defaults(command=_run)
    _add_sweeps(running)
    _add_options(running, SHARED | RUN)
    _add_path(running)
    running.add_argument("--dry-run", action="store_true", help="print the cells and stop")
    running.add_argument(
        "--rehearse",
        action="store_true",
        help="run a public setting on seeded weights of reduced size, to see all of it work",
    )
    running.set_defaults(**(defaults or {}))

    comparing = commands.add_parser("compare", help="two results folders side by side")
    comparing.set_defaults(command=_compare)
    comparing.add_argument("first", metavar="FOLDER", type=Path, help="of a run")
    comparing.add_argument("second", metavar="FOLDER", type=Path, help="of another")
    comparing.add_argument("--csv", metavar="FILE", type=Path, help="write all figures there too")

    publishing = commands.add_parser(
        "publish", help="put a run's results among the committed ones, and build all of them"
    )
    publishing.set_defaults(command=_publish)
    publishing.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=Path, help=f"of a run, e.g. {OUTPUT}/..."
    )
    publishing.add_argument(
        "--into", metavar="RESULTS", type=Path, default=RESULTS,
        help="other results than reports/results; their page is RESULTS/index.html then",
    )  # fmt: skip

    scoring = commands.add_parser(
        "score", help="the figures of a row, for images that other code has made"
    )
    scoring.set_defaults(command=_score)
    scoring.add_argument(
        "folder", metavar="FOLDER", type=Path,
        help="of .png files in folders named like classes, or an .npz of images and labels",
    )  # fmt: skip
    scoring.add_argument("--name", help="of the row (default: the folder's)")
    scoring.add_argument(
        "--in-order",
        action="store_true",
        help="image i, by the numbers in names, is of the i-th target",
    )
    _add_options(
        scoring, {name: SHARED[name] for name in ("setting", "plugin", "store")}
        | {"output": "results folder (default: .ppap/results/SETTING-given)"}
    )  # fmt: skip

    timing = commands.add_parser(
        "retime", help="what an image costs by each method of a run of peers, measured here"
    )
    timing.set_defaults(command=_retime)
    timing.add_argument("folder", metavar="FOLDER", type=Path, help="of results")
    told = {name: SHARED[name] for name in ("rows", "plugin", "store")}
    _add_options(timing, told | {name: RUN[name] for name in ("workers", "output")})

    listing = commands.add_parser("list", help="the sweeps and budgets there are")
    listing.set_defaults(command=_list)

    showing = commands.add_parser("show", help="where a record comes from, down to its inputs")
    showing.set_defaults(command=_show)
    showing.add_argument("key", metavar="KEY", help="of a record or artifact; a prefix will do")
    _add_options(showing, {"store": SHARED["store"]})
    _add_results(showing, "records below are known, even if their artifacts are gone")

    telling = commands.add_parser("status", help="how far sweeps are, and what is left")
    telling.set_defaults(command=_status)
    _add_sweeps(telling)
    _add_options(telling, SHARED | {"output": RUN["output"]})
    _add_path(telling)
    telling.set_defaults(**(defaults or {}))

    cleaning = commands.add_parser("gc", help="what no record needs; says so before it removes")
    cleaning.set_defaults(command=_gc)
    _add_options(cleaning, {"store": SHARED["store"]})
    _add_results(cleaning, "keep what records below need")
    cleaning.add_argument(
        "--older-than", type=float, default=60.0, metavar="MINUTES",
        help="keep what is younger: a run may be using it (default: 60)",
    )  # fmt: skip
    cleaning.add_argument("--delete", action="store_true", help="remove what is listed")
    return parser


def _add_path(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--plain",
        action="store_const",
        dest="path",
        const="plain",
        help="run networks module by module (default at the budgets smoke and default, in "
        "rehearsals, and where there is no compiler)",
    )
    ways.add_argument(
        "--fast", action="store_const", dest="path", const="fast",
        help="merge, fold and compile networks (default otherwise)",
    )  # fmt: skip


def _add_results(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[OUTPUT, RESULTS],
        metavar="FOLDER",
        help=f"{text} (default: .ppap/results and reports/results)",
    )


def _add_sweeps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweeps",
        nargs="*",
        default=(),
        metavar="SWEEP",
        help=f"{', '.join(SWEEPS)}; {' or '.join(GROUPS)} "
        f"(default: headline, which is {', '.join(HEADLINE)}; at the budget smoke all)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="options from a file, if not given here"
    )


def _add_options(parser: argparse.ArgumentParser, helps: dict[str, str]) -> None:
    """The options of :class:`ablations.runs.Options` by name, with its defaults."""
    defaults = {field.name: field.default for field in fields(Options)}
    for name, text in helps.items():
        flag, default = f"--{FLAGS.get(name, name).replace('_', '-')}", defaults[name]
        shown = f"{text} (default: {default})" if isinstance(default, str) else text
        kind: Any = str
        if name in ("seeds", "samples", "steps", "synthetic", "workers"):
            kind = int
        elif name == "output":
            kind = Path
        elif name == "scales":
            kind = float
        many: dict[str, Any] = {"nargs": "+"} if name in SEVERAL else {}
        if name == "changes":
            many |= {"action": "extend", "dest": name, "metavar": "FIELD=VALUE"}
            default = list(default)
        parser.add_argument(flag, type=kind, default=default, help=shown, **many)


if __name__ == "__main__":
    status = main()
    if status == EXIT_INTERRUPTED:
        # Without waiting for cells that are running: their workers end with this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
