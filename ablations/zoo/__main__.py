"""Command line of the zoo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ablations.zoo
from ablations.errors import UserError
from ablations.settings.shipped import WEIGHTS
from ablations.zoo import fashion, large, scenes

TRAININGS = {
    "fashion": fashion.train_all,
    "scenes": scenes.train_all,
    **{name: each.train_all for name, each in large.LARGE.items()},
}


def main(arguments: list[str] | None = None) -> int:
    """Train the named settings, or all; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.zoo", description=ablations.zoo.__doc__
    )
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of {', '.join(TRAININGS)}")
    parser.add_argument("--work", type=Path, default=Path(".ppap/zoo"), help="for checkpoints")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="for the weights")
    options = parser.parse_args(arguments)
    try:
        for name in options.settings or TRAININGS:
            if name not in TRAININGS:
                raise UserError(f"unknown setting {name!r}", f"choose from {', '.join(TRAININGS)}")
            work, target = options.work / name, options.target / name
            for folder in (work, target):
                folder.mkdir(parents=True, exist_ok=True)
            TRAININGS[name](work, target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
