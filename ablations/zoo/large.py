"""Trains what large settings have of their own: a denoiser each.

Judges and predictors are those of the small settings, whose weights are not written again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ablations.zoo.denoisers import TRAININGS, Zoo
from ablations.zoo.denoising import DenoiserRecipe
from ablations.zoo.training import fingerprint
from ppap.compute.precision import choose_precision

__all__ = ["LARGE", "Large", "assemble"]

MEASURED = 10_000


@dataclass(frozen=True)
class Large:
    """The training of a large setting.

    Attributes:
        setting: its name.
        denoiser: among the trainings of denoisers.
        recipe: of the denoiser's training.
    """

    setting: str
    denoiser: str
    recipe: DenoiserRecipe

    def train_all(self, work: Path, target: Path) -> None:
        """Train, or go on; measure; write weights, card and fingerprint.

        Args:
            work: folder for states and curves.
            target: folder of the weights.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        zoo = Zoo(self.denoiser, work, device, choose_precision("auto", device))
        zoo.train(self.recipe)
        zoo.measure(MEASURED)
        assemble(work / "weights" / self.denoiser, target)


def _recipe(
    denoiser: str, steps: int, cooldown: int, evaluate_every: int = 400, batch: int = 64
) -> DenoiserRecipe:
    given = {"steps": steps, "cooldown": cooldown, "evaluate_every": evaluate_every}
    return replace(TRAININGS[denoiser].recipe, batch=batch, **given)


LARGE = {
    "fashion-large": Large("fashion-large", "fashion", _recipe("fashion", 4_400, 1_000)),
    "scenes-large": Large("scenes-large", "scenes", _recipe("scenes", 4_400, 1_000)),
    "scenes-long": Large("scenes-long", "scenes", _recipe("scenes", 3_524, 587, 3_000, 512)),
}
"""By setting: 282 thousand images each, about an hour on one core with bfloat16; the last, 1.8
million, took three minutes on an H200."""


def assemble(source: Path, target: Path) -> None:
    """From where a training was measured to where settings look for their weights.

    Args:
        source: folder of the training's weights, facts and card.
        target: folder of the setting, whose name is the setting's.
    """
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "denoiser.safetensors", target / "denoiser.safetensors")
    shutil.copyfile(source / "DENOISER.md", target / "MODEL_CARD.md")
    facts = json.loads((source / "denoiser.json").read_text())
    about = {
        "setting": target.name,
        "models": {"denoiser": facts},
        "fingerprint": fingerprint(target, ["denoiser"]),
    }
    (target / "zoo.json").write_text(json.dumps(about, indent=2) + "\n")
