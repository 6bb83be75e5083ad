"""Learning rates, chosen for every arm of the paper's claims on images that none is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablations.cells.results import Result
from ablations.cells.synthesis import Synthesis
from ablations.cells.validation import TunedRate, Validation
from ablations.errors import UserError
from ablations.sweeps.banks import SAMPLER
from ablations.sweeps.claims import ARMS, guides
from ablations.sweeps.lab import Lab
from ablations.sweeps.recipes import Recipe
from ablations.sweeps.registry import sweep

__all__ = ["RATES", "tuned_rate"]

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (2_000, 2_001)
"""Of the trainings, no more than the budget has: no row and no unit has them."""
HELD_OUT_SEED = 15 * 10**8
"""Of the synthetic images that nothing is trained on."""


@sweep(
    "tuning",
    metrics=("learning_rate", "validation_loss", "validation_score"),
    figure="none",
    tunes=True,
)
def tuning(lab: Lab) -> Iterator[Result]:
    """The learning rate of every arm.

    Of five rates, that of the least validation loss, mean over noise levels and up to two trainings
    that no table shows: against the teacher on synthetic images that nothing is trained on, and
    against labels on the test split. The score is that of the chosen rate on the same images. An
    arm whose rate in use is the one chosen here is at no disadvantage.
    """
    if lab.setting.published is not None:
        raise UserError(
            f"setting {lab.setting.name} has a published learning rate", "choose another setting"
        )
    if any(name == "learning_rate" for name, _ in lab.changes):
        raise UserError("sweep tuning varies learning_rate itself", "leave out --set learning_rate")
    for shown, task, predictor in guides(lab.setting, lab.predictors):
        for name, recipe in ARMS.items():
            if recipe and recipe.experts and recipe.supervision != "shuffled":
                yield tuned_rate(lab, name, recipe, shown, task, predictor)


def tuned_rate(
    lab: Lab, name: str, recipe: Recipe, shown: str, task: str, predictor: str
) -> TunedRate:
    """The choice of an arm's learning rate.

    Args:
        lab: of the sweep.
        name: of the arm.
        recipe: of its experts.
        shown: what records call the predictor.
        task: of the setting, by name.
        predictor: that the experts adapt.
    """
    count = lab.budget.noisy_images
    synthetic = Synthesis(lab.setup, SAMPLER, HELD_OUT_SEED, count)
    held_out = synthetic if recipe.supervision == "data-free" else None
    validations = []
    for rate in RATES:
        faster = replace(recipe, tuning=replace(recipe.tuning, learning_rate=rate))
        banks = (lab.experts(faster, predictor, seed, task) for seed in SEEDS[: lab.budget.seeds])
        validations.append(tuple(Validation(bank, held_out, count) for bank in banks))
    return TunedRate(lab.setup, lab.about(name, recipe, shown), RATES, tuple(validations))
