"""From a recipe to the cells of a trained bank: seeds, shards, ranges and budgets."""

from __future__ import annotations

from dataclasses import replace

from ablations.cells.experts import BalancedRanges, Experts
from ablations.cells.predictors import Pretrained
from ablations.cells.setup import Setup
from ablations.cells.synthesis import ShuffledLabels, Synthesis, TrainingData
from ablations.settings.budget import Budget
from ablations.settings.setting import Setting
from ablations.sweeps.recipes import FULL, LORA, FineTuning, Recipe
from ppap.diffusion.ddim import DDIM
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training

__all__ = ["SAMPLER", "SYNTHESIS_SEED", "long_trained_bank", "synthetic_data", "trained_bank"]

SAMPLER = DDIM(25)
SYNTHESIS_SEED, SHARD = 10**9, 500
REFERENCE_SEED, REFERENCE_LENGTH = 1_000, 16
"""Of the long-trained experts whose gradients are the standard: a seed that no row has."""


def trained_bank(
    setting: Setting,
    budget: Budget,
    recipe: Recipe,
    predictor: str | Pretrained,
    seed: int,
    task: str = "class",
) -> Experts:
    """The bank of a recipe with at least one expert.

    Args:
        setting: what the experiment is run on.
        budget: how much of it.
        recipe: how the bank is made.
        predictor: that the experts adapt.
        seed: of the training.
        task: of the setting, by name.
    """
    tuning = fine_tuning_in(setting, recipe.tuning)
    least = recipe.experts * (2 if recipe.start == "shared" else 1)  # one step for each expert
    training = Training(
        max(least, round(budget.steps * recipe.length)),
        budget.batch,
        tuning.learning_rate,
        start=recipe.start,
        order=recipe.order,
        keep_optimiser=recipe.keep_optimiser,
        seed=seed,
    )
    labelled = recipe.supervision != "data-free"
    if labelled:
        shuffled = recipe.supervision == "shuffled"
        data = ShuffledLabels(seed=seed) if shuffled else TrainingData()
    else:
        data = synthetic_data(setting, budget, recipe.images)
    return Experts(
        Setup.of(setting),
        predictor,
        _ranges(setting, budget, recipe, predictor),
        tuning.adapter,
        training,
        data,
        0.25 if labelled else recipe.temperature,
        recipe.normalised,
        task,
    )


def long_trained_bank(setting: Setting, budget: Budget, predictor: str | Pretrained) -> Experts:
    """Five labelled, fully trained experts: the standard that gradients are held against."""
    recipe = Recipe(supervision="labelled", tuning=FULL, length=REFERENCE_LENGTH)
    return trained_bank(setting, budget, recipe, predictor, REFERENCE_SEED)


def synthetic_data(setting: Setting, budget: Budget, amount: float = 1.0) -> TrainingData:
    """Synthetic images, in shards that can be drawn side by side.

    Args:
        setting: whose denoiser draws them.
        budget: how many.
        amount: relative to the budget's.
    """
    count = max(1, round(budget.synthetic * amount))
    size = min(SHARD, budget.synthetic)
    shards = tuple(
        Synthesis(Setup.of(setting), SAMPLER, SYNTHESIS_SEED + start, size)
        for start in range(0, count, size)
    )
    return TrainingData(shards, count if count % size else None)


def fine_tuning_in(setting: Setting, tuning: FineTuning) -> FineTuning:
    """As the setting has it: rank and learning rate belong to a size of network."""
    if setting.published is None:
        return tuning
    lora, rate = setting.published
    adapter = Adapter((Biases(), Norms(), lora)) if tuning == LORA else tuning.adapter
    return replace(tuning, adapter=adapter, learning_rate=rate)


def _ranges(
    setting: Setting, budget: Budget, recipe: Recipe, predictor: str | Pretrained
) -> NoiseRanges | BalancedRanges:
    schedule = setting.denoiser().schedule
    if recipe.ranges == "transfer loss":
        one = trained_bank(setting, budget, Recipe(experts=1), predictor, 0)
        return BalancedRanges(one, recipe.experts)
    if recipe.ranges == "log-SNR":
        return NoiseRanges.equal_log_snr(recipe.experts, schedule)
    ranges = NoiseRanges.equal(recipe.experts, len(schedule))
    return replace(ranges, inclusive=recipe.inclusive)
