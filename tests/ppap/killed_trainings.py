"""Kills trainings at random moments and looks whether they end as if undisturbed.

    python -m tests.ppap.killed_trainings FOLDER KILLS

A training runs in a process of its own, which is killed with SIGKILL after a random part of the
time that an undisturbed one takes, and is started again until it has come to its end; then all
begins anew until there were enough kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file

from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import full_adapter
from ppap.experts.bank import ExpertBank
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.checkpoints import PART, save_weights
from ppap.files.images import to_uint8
from tests.ppap.networks import images, tiny_predictor

TRAINING = Training(steps=40, batch=16, learning_rate=1e-2, keep_optimiser=True)


@dataclass
class Survey:
    """What the kills did.

    Attributes:
        kills: processes that were killed while they trained.
        resumed: starts that went on from some step.
        trainings: that came to their end.
        different: of these, trainings whose experts are not those of an undisturbed one.
        left: files beside the training's and the result's.
    """

    kills: int = 0
    resumed: int = 0
    trainings: int = 0
    different: int = 0
    left: int = 0


def start(folder: Path) -> int:
    """A process that trains, and then saves the experts; its number."""
    folder.mkdir(exist_ok=True)
    if child := os.fork():
        return child
    try:
        bank = ExpertBank(tiny_predictor(), 3, full_adapter())
        data = to_uint8(images(32, 5).clamp(-1, 1))
        first = True

        def progress(done: int, total: int, /, **facts: float) -> None:
            nonlocal first
            if first and done > 1:
                (folder / f"resumed-{os.getpid()}").touch()
            first = False

        transfer(
            bank, linear_schedule(), data, training=TRAINING, progress=progress,
            file=folder / "training.safetensors", every=3,
        )  # fmt: skip
        save_weights(bank.experts.state_dict(), folder / "result.safetensors")
    finally:
        os._exit(int(not (folder / "result.safetensors").exists()))


def survive(folder: Path, kills: int, seed: int = 0) -> Survey:
    """Train under fire."""
    rng, survey = random.Random(seed), Survey()
    began = time.monotonic()
    assert os.waitpid(start(folder / "calm"), 0)[1] == 0
    longest = time.monotonic() - began
    expected = (folder / "calm" / "result.safetensors").read_bytes()
    while survey.kills < kills:
        home = folder / f"round{survey.trainings}"
        while not (home / "result.safetensors").exists():
            child = start(home)
            if survey.kills < kills:
                time.sleep(rng.uniform(0, longest))
                os.kill(child, signal.SIGKILL)  # which one that has ended does not mind
            _, status = os.waitpid(child, 0)
            survey.kills += os.WIFSIGNALED(status)
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        survey.trainings += 1
        survey.different += (home / "result.safetensors").read_bytes() != expected
        names = {path.name.partition("-")[0] for path in home.iterdir()}
        survey.resumed += len(list(home.glob("resumed-*")))
        ours = {"training.safetensors", "result.safetensors", "result.safetensors" + PART}
        survey.left += len(names - ours - {"resumed"})
        assert load_file(home / "training.safetensors")["done"] == TRAINING.steps
    return survey


if __name__ == "__main__":
    print(json.dumps(asdict(survive(Path(sys.argv[1]), int(sys.argv[2])))))
