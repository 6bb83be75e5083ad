"""Whole calls of ``sample``, and what a call spends before its first step."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.guided import FAST, HALF, SAMPLER, WAYS, guide_of
from bench.workloads import BATCH, bank_of, denoiser
from ppap.compute.precision import Precision
from ppap.diffusion.guide import Guide
from ppap.diffusion.sampling import Step
from ppap.fast.sampling import sample

__all__ = ["PRESETS", "Beginning", "NewProcesses", "drawn", "second_call"]

PRESETS: dict[str, tuple[str, Precision]] = {"preset fast": ("fast", "fp32")}
if HALF in WAYS:
    PRESETS["preset held-back, bf16"] = ("held-back", "bf16")
"""Ways of fewer steps: the presets of ``sample``, and in which precision."""
USUAL_STEPS = 8
"""After the first one, whose median a new process takes for a step without set-up."""
ROOT = Path(__file__).resolve().parents[1]


def drawn(
    way: str,
    guide: Guide,
    count: int = BATCH,
    on_step: Callable[[Step], None] | None = None,
    fast: bool | None = None,
) -> Tensor:
    """(count, C, H, W) images of one call.

    Args:
        way: of :data:`bench.guided.WAYS`, or of :data:`PRESETS`, which take other steps.
        guide: to as many targets.
        count: images, drawn in batches of :data:`~bench.workloads.BATCH`.
        on_step: sees every step.
        fast: False for the way's steps on the plain path.
    """
    network = denoiser()
    if way in PRESETS:
        preset, precision = PRESETS[way]
        return sample(
            network, count, guide, batch=BATCH, preset=preset, on_step=on_step, fast=fast,
            precision=precision,
        )  # fmt: skip
    return sample(
        network, count, guide, SAMPLER, batch=BATCH, on_step=on_step,
        fast=way in (FAST, HALF) if fast is None else fast,
        precision="bf16" if way == HALF else "fp32",
    )  # fmt: skip


class Beginning:
    """Sees the steps of one call, which it is made right before, and knows when the first began.

    Whatever the first step takes longer than the median of those after it belongs to the set-up:
    looking at weights, merging the first expert, tracing, loading, comparing with the plain path.
    """

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.ends: list[float] = []

    def __call__(self, step: Step) -> None:
        del step
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the call until its first step begins.

        Raises:
            ValueError: before the second step, for there is no usual step to compare with.
        """
        if len(self.ends) < 2:
            raise ValueError(f"a first step and usual ones are needed, {len(self.ends)} were seen")
        usual = statistics.median(b - a for a, b in pairwise(self.ends))
        return self.ends[0] - self.made - usual


def second_call(predictor: str) -> Callable[[], float]:
    """Seconds of set-up of a call on the fast path, to other targets of the same bank each time.

    The first call is the first of its kind in the process, if nothing else has made one.
    """
    bank = bank_of(predictor)

    def run() -> float:
        guide, beginning = guide_of(FAST, bank, BATCH), Beginning()
        drawn(FAST, guide, on_step=beginning)
        return beginning.seconds

    return run


class NewProcesses:
    """Processes that import, load and begin to sample on the fast path, one after another.

    Several figures are read off each process; each figure of each process is given once, in the
    order of the processes, whatever the order in which the figures are asked for.
    """

    def __init__(self, predictor: str) -> None:
        self.predictor = predictor
        self._unread: dict[str, list[float]] = {"until the first step": [], "set-up": []}

    @cached_property
    def warmed(self) -> None:
        """One process, of which nothing is read: afterwards everything compiled is on disk."""
        self._run()

    def next(self, figure: str) -> float:
        """Seconds ``"until the first step"`` of a process, or of ``"set-up"`` in ``sample`` alone.

        Raises:
            subprocess.CalledProcessError: if the process fails.
        """
        if not self._unread[figure]:
            for name, seconds in self._run().items():
                self._unread[name].append(seconds)
        return self._unread[figure].pop(0)

    def _run(self) -> dict[str, float]:
        command = [sys.executable, "-m", "bench.calls", self.predictor]
        command += ["--threads", str(torch.get_num_threads())]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        began = time.time()
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=True,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        return {"until the first step": found["at"] - began, "set-up": found["set_up"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Begin to sample, and print as JSON when the first step began and how long set-up took."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=__doc__)
    parser.add_argument("predictor")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    denoiser()
    guide = guide_of(FAST, bank_of(options.predictor), BATCH)
    beginning = Beginning()

    def watch(step: Step) -> None:
        beginning(step)
        if len(beginning.ends) <= USUAL_STEPS:
            return
        began = beginning.made + beginning.seconds
        at = time.time() - (time.perf_counter() - began)
        print(json.dumps({"at": at, "set_up": beginning.seconds}))
        raise SystemExit  # the rest of the steps would tell nothing

    drawn(FAST, guide, on_step=watch)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
