"""Kills real runs at random moments and looks whether anything is lost.

    python -m tests.ablations.kill --kills 50 -- run methods --budget smoke --predictors resnet

A run is started, killed with SIGKILL after a random while (its main process, one of its workers
or all of them) and started again, until it has come to its end; then all begins anew with an
empty store until there were enough kills. Each time the records must equal those of a run that
nobody disturbed, timing fields aside, and no artifact that was there may have been written again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMING = {
    "created", "wall_seconds", "train_seconds", "images_per_second", "synthesis_per_second",
    "transfer_per_second", "peak_memory_mib",
}  # fmt: skip
ORPHAN_SECONDS, CALM_RUNS = 120.0, 3


@dataclass
class Survey:
    """What the kills did.

    Attributes:
        kills: how many runs were killed, by whom the signal hit.
        rounds: how often the work was done from an empty store to the end.
        artifacts: how many a round makes.
        rewritten: artifacts that were whole and were written again all the same.
        orphans: processes that outlived the run they belonged to by more than some seconds.
        gave_up: runs that ended with an error, though only a worker of theirs had been killed.
        records_equal: whether every round's records are those of an undisturbed run.
    """

    kills: dict[str, int]
    rounds: int = 0
    artifacts: int = 0
    rewritten: int = 0
    orphans: int = 0
    gave_up: int = 0
    records_equal: bool = True


def survive(command: Sequence[str], kills: int, seed: int, folder: Path, longest: float) -> Survey:
    """Run a command that takes ``--store`` and ``--output`` under fire.

    Args:
        command: of a run, without these two.
        kills: how many.
        seed: of the moments and targets.
        folder: for stores and results.
        longest: seconds between a start and its kill, at most.
    """
    rng = random.Random(seed)
    survey = Survey({"main": 0, "worker": 0, "all": 0})
    assert _start(command, folder / "calm").wait() == 0
    expected = untimed(folder / "calm" / "out" / "records.jsonl")
    while sum(survey.kills.values()) < kills:
        home = folder / f"round{survey.rounds}"
        seen: dict[Path, int] = {}
        while sum(survey.kills.values()) < kills:
            if _fire(_start(command, home), rng, longest, survey):
                break
            survey.rewritten += _count_rewritten(home, seen)
        # What the last kill interrupted is brought to its end.
        if all(_start(command, home).wait() != 0 for _ in range(CALM_RUNS)):
            raise RuntimeError(f"{' '.join(command)} fails though nobody kills it")
        survey.rewritten += _count_rewritten(home, seen)
        survey.artifacts = len(seen)
        same = untimed(home / "out" / "records.jsonl") == expected
        survey.records_equal = survey.records_equal and same
        survey.rounds += 1
        shutil.rmtree(home)
    return survey


def untimed(path: Path) -> dict[str, Any]:
    """The records of a file by key, without the fields that tell times."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in TIMING}
        return [strip(part) for part in value] if isinstance(value, list) else value

    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [r for r in records if r["kind"] != "failure"]
    return {record["key"]: strip(record) for record in kept}


def _start(command: Sequence[str], home: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    places = ["--store", str(home / "store"), "--output", str(home / "out")]
    return subprocess.Popen(
        [sys.executable, "-m", *command, *places],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _fire(
    process: subprocess.Popen[bytes], rng: random.Random, longest: float, survey: Survey
) -> bool:
    """Kill something of a run after a while; True if the run had come to its end before."""
    try:
        process.wait(rng.uniform(0.2, longest))
    except subprocess.TimeoutExpired:
        target = rng.choice(("main", "worker", "all"))
        workers = _workers(process.pid) if target == "worker" else []
        if target == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        else:
            target = "main"
            process.kill()
        survey.kills[target] += 1
        if target != "worker":
            process.wait()
            survey.orphans += _count_orphans(process.pid)
            return False
        # A run goes on without one of its workers.
        survey.gave_up += process.wait() != 0
        return process.returncode == 0
    return True


def _workers(session: int) -> list[int]:
    """Processes of the run's session other than its first."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False
    )
    found = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, state in found if int(pid) != session and state[0] != "Z"]


def _count_orphans(session: int) -> int:
    """Processes of a dead run's session; they get a few seconds to notice."""
    until = time.monotonic() + ORPHAN_SECONDS
    while (left := _workers(session)) and time.monotonic() < until:
        time.sleep(0.1)
    return len(left)


def _count_rewritten(home: Path, seen: dict[Path, int]) -> int:
    """Artifacts that changed since they were first seen; takes note of the new ones."""
    count = 0
    for path in (home / "store").rglob("*.artifact"):
        written = path.stat().st_mtime_ns
        count += seen.setdefault(path, written) != written
    return count


def main() -> int:
    """Report as JSON; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds until a kill")
    parser.add_argument("run", nargs="+", help="arguments of python -m ablations, after --")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        survey = survive(
            ["ablations", *options.run], options.kills, options.seed, Path(folder), options.longest
        )
    print(json.dumps(asdict(survey) | {"minutes": round((time.monotonic() - began) / 60, 1)}))
    lost = survey.rewritten or survey.orphans or survey.gave_up or not survey.records_equal
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(main())
