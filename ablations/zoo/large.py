"""Trains the network of ``fashion-large`` that ``fashion`` does not have: its denoiser.

The judge and the predictors are those of ``fashion``, whose weights are not written again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from ablations.zoo.denoisers import TRAININGS, Zoo
from ablations.zoo.training import fingerprint
from ppap.compute.precision import choose_precision

__all__ = ["RECIPE", "assemble", "train_all"]

NAME = "fashion"
"""Among the trainings of denoisers."""
RECIPE = replace(TRAININGS[NAME].recipe, steps=4_400, cooldown=1_000, evaluate_every=400)
"""282 000 images: 50 minutes on one core with bfloat16, and as long again for what is measured."""
MEASURED = 10_000


def train_all(work: Path, target: Path) -> None:
    """Train, or go on; measure; write weights, card and fingerprint.

    Args:
        work: folder for states and curves.
        target: folder of the weights.
    """
    zoo = Zoo(NAME, work, "cpu", choose_precision("auto", "cpu"))
    zoo.train(RECIPE)
    zoo.measure(MEASURED)
    assemble(work / "weights" / NAME, target)


def assemble(source: Path, target: Path) -> None:
    """From where a training was measured to where settings look for their weights."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "denoiser.safetensors", target / "denoiser.safetensors")
    shutil.copyfile(source / "DENOISER.md", target / "MODEL_CARD.md")
    facts = json.loads((source / "denoiser.json").read_text())
    about = {
        "setting": "fashion-large",
        "models": {"denoiser": facts},
        "fingerprint": fingerprint(target, ["denoiser"]),
    }
    (target / "zoo.json").write_text(json.dumps(about, indent=2) + "\n")
