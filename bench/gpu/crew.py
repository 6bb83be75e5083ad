"""Processes that check the kernels and compile ahead, side by side, before anything is timed.

Each takes the next job that nobody has taken. A GPU's error, after which its process can compute
nothing more, costs that job alone: the process starts anew and goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.accuracy import odd_checks, real_checks, run_check
from bench.gpu.end_to_end import compile_once, compile_training_once
from bench.gpu.kernel_times import compile_rival, kernel_cases
from bench.gpu.session import Deadline, Record
from bench.gpu.sizes import GPU, REHEARSAL, Sizes

__all__ = ["crew", "jobs", "main", "take_jobs"]

Job = tuple[str, Callable[[], Iterator[dict[str, Any]]]]
CHECKED = "check"
GPU_ERRORS = ("CUDA error", "illegal memory access", "unspecified launch failure", "misaligned")


def jobs(sizes: Sizes) -> Iterator[Job]:
    """The longest compilations, the checks, then what is nice to have compiled ahead."""
    on = sizes.on

    def nothing(function: Callable[[], Any]) -> Callable[[], Iterator[dict[str, Any]]]:
        def run() -> Iterator[dict[str, Any]]:
            function()
            return iter(())

        return run

    def guided(predictor: str, mode: str, way: str) -> Job:
        ahead = nothing(lambda: compile_once(predictor, mode, way, sizes))
        return f"compile {way} {predictor} {mode}", ahead

    def trained(predictor: str, batch: int) -> Job:
        ahead = nothing(lambda: compile_training_once(predictor, batch, sizes))
        return f"compile training {predictor} {batch}", ahead

    for predictor in sizes.predictors:
        for mode in ("tf32", "fp32") if sizes.compile else ("tf32",):
            yield guided(predictor, mode, "fast path" if sizes.compile else "plain")
    for predictor in sizes.predictors if sizes.compile else ():
        yield guided(predictor, "tf32", "plain, torch.compile")
        yield trained(predictor, sizes.training[0])
    groups = [list(odd_checks()), list(real_checks(on))]
    if not sizes.compile:  # one of each operation
        groups = [list({check.name: check for check in groups[0]}.values())]
    for group in groups:
        for mode in sizes.modes:
            for check in group:
                name = f"{CHECKED} {check.name} {check.shape} {mode}"
                yield name, partial(run_check, check, mode, on)
    if sizes.compile:
        for predictor in sizes.predictors:
            yield guided(predictor, "bf16", "fast path")
            yield trained(predictor, sizes.training[-1])
        for case in kernel_cases(on):
            if any(way.name == "torch.compile" for way in case[0].ways):
                name = f"compile {case[0].name} {case[0].shape} {case[2]} {case[1]}"
                yield name, nothing(partial(compile_rival, case, on))


def take_jobs(sizes: Sizes, folder: Path, member: int, deadline: Deadline) -> None:
    """Do what nobody has taken; one line of JSON for every finding."""
    with (folder / f"{member}.jsonl").open("a") as found:

        def say(row: dict[str, Any]) -> None:
            found.write(json.dumps(row, default=str) + "\n")
            found.flush()

        for number, (name, run) in enumerate(jobs(sizes)):
            if deadline.left <= 0:
                return
            if not _claimed(folder / f"{number}.claim"):
                continue
            began, failed, crashed = time.monotonic(), "", ""
            try:
                with poisoned() if name.startswith(CHECKED) else nullcontext():
                    for row in run():
                        say({"job": name, "row": row})
                        failed += row.get("failed", "")
            except Exception as error:  # noqa: BLE001 whatever a driver or a compiler raises
                crashed = f"{type(error).__name__}: {str(error)[:1500]}"
            torch._dynamo.reset()
            say({"job": name, "seconds": round(time.monotonic() - began, 2), "failed": crashed})
            if any(text in failed + crashed for text in GPU_ERRORS):
                found.close()
                os.execv(sys.executable, [sys.executable, "-m", "bench.gpu.crew", *sys.argv[1:]])


def _claimed(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every output that kernels allocate with NaN, so that what is not written shows."""
    original = Tensor.new_empty

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        fresh = original(self, *size, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    Tensor.new_empty = new_empty  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Tensor.new_empty = original  # type: ignore[method-assign]


def crew(record: Record, sizes: Sizes, folder: Path, members: int, deadline: Deadline) -> None:
    """Let some processes do the jobs; put what the checks found into the record."""
    folder.mkdir(parents=True)
    rehearsal = ["--rehearse"] if sizes is REHEARSAL else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    running = []
    for member in range(members):
        command = [
            sys.executable, "-m", "bench.gpu.crew", str(folder), str(member), str(deadline.at),
            *rehearsal,
        ]  # fmt: skip
        log = (folder / f"{member}.log").open("w")
        running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        while deadline.left > 0 and any(process.poll() is None for process in running):
            time.sleep(0.2)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
    for member, process in enumerate(running):
        if process.returncode not in (0, -9):
            log_text = (folder / f"{member}.log").read_text()[-3000:]
            record.errors.append(
                {"what": f"process {member}", "error": "ended", "traceback": log_text}
            )
            print(f"  FAILED process {member}: {log_text[-300:]}")
    gather(record, sizes, folder)


def gather(record: Record, sizes: Sizes, folder: Path) -> None:
    """Read what the processes wrote, and say which checks failed and what was left."""
    ended: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off with its process
                continue
            if "row" in entry:
                record.rows.append(entry["row"])
            else:
                ended[entry["job"]] = entry
    for name, entry in ended.items():
        if entry["failed"]:
            record.errors.append({"what": name, "error": "failed", "traceback": entry["failed"]})
            print(f"  FAILED {name}: {entry['failed'][:200]}")
    for number, (name, _) in enumerate(jobs(sizes)):
        if name not in ended:
            begun = (folder / f"{number}.claim").exists()
            record.left_out.append(f"{name}: {'not finished' if begun else 'no time left'}")
    checked = [name for name in ended if name.startswith(CHECKED)]
    wrong = [row for row in record.rows if not row["ok"]]
    record.notes["checks"] = {
        "jobs": len(checked),
        "results": len(record.rows),
        "wrong": len(wrong),
    }
    record.notes["seconds"] = {name: entry["seconds"] for name, entry in ended.items()}
    print(f"  {len(checked)} checks, {len(record.rows)} results, {len(wrong)} wrong")
    for row in wrong[:40]:
        about = " ".join(str(row[key]) for key in ("operation", "shape", "mode", "backend", "pass"))
        print(f"  WRONG {about}: {row.get('errors') or row.get('failed', '')[:200]}")
    record.write()


def main() -> int:
    """One process of the crew."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.crew")
    parser.add_argument("folder", type=Path)
    parser.add_argument("member", type=int)
    parser.add_argument("until", type=float)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    sizes = REHEARSAL if options.rehearse else GPU
    take_jobs(sizes, options.folder, options.member, Deadline(options.until))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
