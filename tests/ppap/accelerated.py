"""Trains a small bank in several processes, interrupted once, and saves it for a test."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import save_file
from torch import nn

from ppap.compute.progress import Progress
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Full
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask


def forget_accelerators() -> None:
    """All accelerators of a process share their state: the next one is to be made anew."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class TrainingInterruptedError(Exception):
    """Ends a training before its time."""


def interrupt(done: int, total: int, loss: float) -> None:
    """In the midst of the second of two experts."""
    if done == 8:
        raise TrainingInterruptedError


def train(
    accelerator: Accelerator | None,
    file: Path | None = None,
    progress: bool | Progress = False,
) -> tuple[ExpertBank, list[float]]:
    """Two experts of a network without batch norm, under one optimiser state."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 5))
    bank = ExpertBank(Predictor(network, (0.5,), (0.5,)), 2, Adapter((Full(),)))
    if accelerator is not None:
        bank.to(accelerator.device)
    images = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8)
    training = Training(steps=12, batch=16, learning_rate=1e-2, keep_optimiser=True)
    objective = Distillation(ClassTask())
    schedule = linear_schedule()
    losses = transfer(
        bank, schedule, images, objective, training,
        accelerator=accelerator, file=file, every=2, progress=progress,
    )  # fmt: skip
    return bank, losses


if __name__ == "__main__":
    made = Accelerator(cpu=True)
    kept = Path(sys.argv[1]).with_suffix(".kept.safetensors")
    with suppress(TrainingInterruptedError):
        train(made, kept, interrupt)
        raise AssertionError("it was not interrupted")
    trained, found = train(made, kept)
    if made.is_main_process:
        tensors = {k: v.detach() for k, v in trained.experts.state_dict().items()}
        facts = {"losses": torch.tensor(found), "processes": torch.tensor(made.num_processes)}
        save_file(tensors | facts, sys.argv[1])
    made.end_training()
