"""``python -m bench.gpu --out FOLDER``: see :mod:`bench.gpu`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gpu.session import Deadline, Record

__all__ = ["main"]

SHARES = {"correctness": 0.3, "end-to-end": 0.6, "kernels": 0.6, "tune": 1.0}
"""Of the time that is left when a stage begins."""
GRACE = 6.0
"""Seconds over its time after which a stage is broken off."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; 1 where there is no GPU to run on, else 0, whatever was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="by default reports/results/gpu-NAME")
    parser.add_argument("--seconds", type=float, default=270.0, help="for everything together")
    parser.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--workers", type=int, help="processes that check and compile ahead")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes, without a GPU")
    options = parser.parse_args(arguments)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

    import torch
    from ppap_kernels.dispatch import slug

    from bench.gpu.hardware import about, still_works
    from bench.gpu.session import Deadline

    if not options.rehearse and not torch.cuda.is_available():
        print("error: no GPU here; run this where one is, or add --rehearse", file=sys.stderr)
        return 1
    whole = Deadline.after(options.seconds)
    watch_over(whole.left + 3 * GRACE)
    machine = about()
    if options.out is None:
        options.out = Path("reports/results") / f"gpu-{slug(machine.get('gpu', 'rehearsal'))}"
    options.out.mkdir(parents=True, exist_ok=True)
    print(machine)
    lines = []
    for number, stage in enumerate(options.stages):
        if not still_works():
            lines.append(f"{stage} and later: in a new process, for this one lost its GPU")
            go_on(options, options.stages[number:], whole.left)
            break
        last = stage == options.stages[-1]
        part = whole.share(1.0 if last else SHARES[stage])
        began = time.monotonic()
        line = run_stage(stage, options, part, machine)
        lines.append(f"{line}, {time.monotonic() - began:.0f} s")
    print("\n".join(["SUMMARY", str(machine.get("gpu", machine["cpu"])), *lines]))
    return 0


def go_on(options: argparse.Namespace, stages: Sequence[str], seconds: float) -> None:
    """Run what is left in a process of its own."""
    command = [sys.executable, "-m", "bench.gpu", "--out", str(options.out), "--seconds"]
    command += [str(max(1.0, seconds)), "--stages", *stages]
    command += ["--rehearse"] if options.rehearse else []
    subprocess.run(command, check=False)


def run_stage(
    stage: str, options: argparse.Namespace, deadline: Deadline, machine: dict[str, object]
) -> str:
    """One stage, its record written whatever happens; a line on it."""
    from bench.gpu.session import OutOfTimeError, Record, alarm

    print(f"== {stage}: {deadline.left:.0f} s")
    record = Record(options.out / f"{stage}.json", machine)
    try:
        with alarm(deadline.left + GRACE):
            work = stage_work(stage, options, record, deadline)
            work()
    except OutOfTimeError as error:
        record.fail(f"{stage}: broken off, out of time", error)
    except Exception as error:  # noqa: BLE001 the next stage goes on
        record.fail(stage, error)
    record.write()
    return record.summary()


def stage_work(
    stage: str, options: argparse.Namespace, record: Record, deadline: Deadline
) -> Callable[[], None]:
    """What a stage does."""
    from bench.gpu.sizes import GPU, REHEARSAL

    sizes = REHEARSAL if options.rehearse else GPU

    def correctness() -> None:
        from bench.gpu.crew import crew

        members = options.workers or (1 if options.rehearse else max(1, cores() - 2))
        folder = Path(tempfile.mkdtemp())
        try:
            crew(record, sizes, folder / "jobs", members, deadline)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def end_to_end() -> None:
        from bench.gpu.end_to_end import end_to_end

        end_to_end(record, sizes, deadline)

    def kernels() -> None:
        from bench.gpu.kernel_times import kernel_times

        kernel_times(record, sizes, deadline)

    def tune() -> None:
        from bench.gpu.tuning import tables

        tables(record, sizes, deadline, options.out)

    return {
        "correctness": correctness, "end-to-end": end_to_end, "kernels": kernels, "tune": tune,
    }[stage]  # fmt: skip


def cores() -> int:
    return len(os.sched_getaffinity(0))


def watch_over(seconds: float) -> None:
    """End the process even where a driver hangs; what was found is on disk."""

    def end() -> None:
        print("error: out of time, and no stage could be broken off", file=sys.stderr, flush=True)
        os._exit(3)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()


if __name__ == "__main__":
    raise SystemExit(main())
