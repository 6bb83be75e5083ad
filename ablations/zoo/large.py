"""Trains what large settings have of their own: a denoiser each.

Judges and predictors are those of the small settings, whose weights are not written again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ablations.settings.setting import device
from ablations.zoo.denoisers import TRAININGS, Zoo
from ablations.zoo.denoising import DenoiserRecipe
from ablations.zoo.training import fingerprint
from ppap.compute.precision import choose_precision

__all__ = ["LARGE", "Large", "assemble"]

MEASURED = 10_000
HOUR = {"steps": 4_400, "cooldown": 1_000, "evaluate_every": 400}
"""Of one core with bfloat16."""


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
        zoo = Zoo(self.denoiser, work, str(device()), choose_precision("auto", device()))
        zoo.train(self.recipe)
        zoo.measure(MEASURED)
        assemble(work / "weights" / self.denoiser, target)


def _recipe(denoiser: str, **changes: int) -> DenoiserRecipe:
    return replace(TRAININGS[denoiser].recipe, **changes)


LARGE = {
    "fashion-large": Large("fashion-large", "fashion", _recipe("fashion", **HOUR)),
    "scenes-large": Large("scenes-large", "scenes", _recipe("scenes", **HOUR)),
    "scenes-long": Large(
        "scenes-long",
        "scenes",
        _recipe("scenes", steps=3_524, cooldown=587, evaluate_every=3_000, batch=512),
    ),
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
