"""A run of toy cells through the real engine, store and records, to be killed by test_kill.py."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ablations.machine import pools, records
from ablations.machine.cell import Cell
from ablations.machine.engine import run
from ablations.machine.store import Store
from tests.ablations.toy import Alone, Number, Slow


def main() -> int:
    """Forty cells in three layers; 0 if none failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    layer: list[Cell] = [Number(value) for value in range(12)]
    for depth in range(2):
        times = [60 + 17 * (place * (depth + 3) % 7) for place in range(12)]
        pairs = zip(layer, layer[1:] + layer[:1], strict=True)
        layer = [Slow(pair, t, os.devnull) for pair, t in zip(pairs, times, strict=True)]
    targets = [*layer, Alone(tuple(layer[:3])), *(Slow((c,), 90, os.devnull) for c in layer[:3])]
    pools.PRELOAD = ["torch"]  # toys need no sweep, whose import would be most of the test's time
    store = Store(options.store)
    outcome = run(targets, store, 2, quiet=True)
    done = [store.get(cell.key).meta for cell in targets if store.holds(cell.key)]
    records.update(options.output, [meta["record"] for meta in done if "record" in meta])
    return int(bool(outcome.failures))


if __name__ == "__main__":
    raise SystemExit(main())
