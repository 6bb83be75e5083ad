"""Draws the samples of one condition, in a process of its own.

Instruction sets and threads are settled when PyTorch loads its libraries, so that each condition
has its own process: ``python -m bench.rounding.draw WORK CONDITION SAMPLES STEPS``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ppap
from ablations.settings.catalogue import load_setting
from ppap.compute.cpu import instruction_set

from .conditions import GUIDANCE, Condition, by_name

__all__ = ["bank_of", "draw", "draws_file", "main"]

EXPERTS = 5
SYNTHETIC, SYNTHETIC_SEED = 512, 10**6
CLASSES = 10


def draws_file(work: Path, condition: Condition, samples: int, steps: int) -> Path:
    """Where a condition's samples are kept, guided by banks of so many steps."""
    name = condition.name.replace(", ", "-").replace(" ", "-")
    return work / f"draws-{samples}-{steps}" / f"{name}.npz"


def bank_of(predictor: str, steps: int, work: Path) -> ppap.ExpertBank:
    """The PPAP-5 bank of a predictor, from the work folder or trained for so many steps.

    Training is data-free and seeded: 512 synthetic images, the adapter and learning rate of the
    setting's own PPAP rows.
    """
    setting, folder = load_setting("fashion"), work / f"bank-{predictor}-{steps}"
    if (folder / "bank.json").is_file():
        return ppap.ExpertBank.load(folder, setting.predictor(predictor))
    denoiser = setting.denoiser()
    bank = ppap.ExpertBank(setting.predictor(predictor), EXPERTS, ppap.ppap_adapter(4, 2.0))
    images = ppap.synthesize(denoiser, SYNTHETIC, first_seed=SYNTHETIC_SEED, batch=64)
    training = ppap.Training(steps=steps, batch=64, learning_rate=1e-2)
    ppap.transfer(bank, denoiser, images, training=training)
    folder.mkdir(parents=True, exist_ok=True)
    bank.save(folder)
    return bank.eval()


def draw(condition: Condition, samples: int, steps: int, work: Path) -> dict[str, Tensor]:
    """The same (samples, 1, 32, 32) images for every guidance, DDIM-25."""
    denoiser = load_setting("fashion").denoiser()
    fast: Any = False
    if condition.fast:
        fast = ppap.FastPath(denoiser, condition.batch, cache=work / "compiled")
    seeds, targets = torch.arange(samples), torch.arange(samples) % CLASSES
    if condition.reverse:
        seeds, targets = seeds.flip(0), targets.flip(0)
    found = {}
    for guidance in GUIDANCE:
        guide = None
        if guidance.predictor is not None:
            guide = bank_of(guidance.predictor, steps, work).guide(targets, guidance.scale)
        images = ppap.sample(
            denoiser, seeds.tolist(), guide, ppap.DDIM(25), batch=condition.batch, fast=fast
        )
        found[str(guidance)] = images.flip(0) if condition.reverse else images
    return found


def main(arguments: Sequence[str]) -> int:
    """Draw and keep what was drawn, with what it was drawn on."""
    work, condition = Path(arguments[0]), by_name(arguments[1])
    samples, steps = int(arguments[2]), int(arguments[3])
    torch.set_num_threads(condition.threads)
    found = draw(condition, samples, steps, work)
    about = {"instruction_set": instruction_set(), "threads": torch.get_num_threads()}
    target = draws_file(work, condition, samples, steps)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part.npz")
    images = {name: value.numpy() for name, value in found.items()}
    np.savez(scratch, about=np.array(json.dumps(about)), **images)
    scratch.replace(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
