"""Building blocks of sweeps: from a few words to the cells of a table row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ablations.cells.measures import GradientQuality, NoiseAccuracy, TransferSpeed
from ablations.cells.results import (
    About,
    Axis,
    Grid,
    NoiseCurve,
    Result,
    Row,
    Scored,
    TradeoffPoint,
)
from ablations.cells.stages import (
    BalancedRanges,
    Experts,
    Model,
    Pretrained,
    Samples,
    Score,
    Selection,
    Setup,
    Synthesis,
    TrainingData,
    predictor_name,
)
from ablations.settings.setting import Budget, Setting
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.experts.adapters import Adapter, Biases, Norms, full_adapter, ppap_adapter
from ppap.experts.bank import NoiseRanges
from ppap.experts.transfer import Start, Training

__all__ = [
    "FULL",
    "LORA",
    "NAIVE",
    "SAMPLER",
    "FineTuning",
    "Guidance",
    "Lab",
    "Measured",
    "Recipe",
]

SAMPLER = DDIM(25)
SCALE = 16.0
"""Where it is not chosen: on noise-aware guides the trade-off is flat around it."""
EXPERTS = 5
SYNTHESIS_SEED, SELECTION_SEED, ROW_SEED, SEED_STRIDE = 10**9, 2 * 10**9, 3 * 10**9, 10**7
SHARD = 500
REFERENCE_SEED, REFERENCE_LENGTH = 1_000, 16
"""Of the long-trained expert whose gradients are the standard: a seed that no row has."""


@dataclass(frozen=True)
class FineTuning:
    """What is trained of a predictor, and how fast.

    Attributes:
        name: as in the tables.
        adapter: the trained part.
        learning_rate: at the start; it falls to 0.
    """

    name: str
    adapter: Adapter
    learning_rate: float


# Learning rates: the best of 1e-3, 3e-3, 1e-2 and 3e-2 by accuracy on noisy images that no row is
# measured on, for a seed that no row has, at the default budget; the same for both predictors.
FULL = FineTuning("full", full_adapter(), 3e-3)
LORA = FineTuning("LoRA, bias, norm", ppap_adapter(4, 2.0), 1e-2)
"""alpha / rank is the paper's 0.5; its rank 16 would be full rank in networks this narrow."""


@dataclass(frozen=True)
class Recipe:
    """How the experts of a row are made; the defaults are PPAP's.

    Attributes:
        experts: how many; 0 for the predictor as it is.
        supervision: generated images and the teacher, or the training split and its labels.
        tuning: what is trained.
        length: optimiser steps, relative to the budget's.
        images: synthetic images, relative to the budget's.
        ranges: equal in timesteps, in log-SNR or in measured transfer loss.
        inclusive: whether a boundary goes to the lower expert, as in the released code.
        start, order, keep_optimiser: see ``ppap.experts.transfer.Training``.
        temperature: of the teacher.
        normalised: whether the experts see normalised images.
    """

    experts: int = EXPERTS
    supervision: Literal["data-free", "labelled"] = "data-free"
    tuning: FineTuning = LORA
    length: float = 1.0
    images: float = 1.0
    ranges: Literal["timesteps", "log-SNR", "transfer loss"] = "timesteps"
    inclusive: bool = False
    start: Start = "previous"
    order: Literal["ascending", "descending"] = "ascending"
    keep_optimiser: bool = False
    temperature: float = 0.25
    normalised: bool = True


NAIVE = Recipe(experts=0)


@dataclass(frozen=True)
class Guidance:
    """How a row is sampled.

    Attributes:
        sampler: DDIM-25 by default.
        scale: None chooses it on the selection seeds; the usual one is :data:`SCALE`, or the
            first of the budget's in a setting with published hyper-parameters.
        samples: per seed; None takes the budget's.
    """

    sampler: DDIM | DDPM = SAMPLER
    scale: float | Literal["usual"] | None = "usual"
    samples: int | None = None


@dataclass(frozen=True)
class Measured:
    """What is measured of a row besides its samples.

    Attributes:
        grid: pictures to look at.
        tradeoff: accuracy and FID at every scale, of a chosen scale.
        noise: the model's own accuracy on noisy images; as a number in the row.
        curve: and as a curve.
        gradients: cosine with the gradient of a long-trained expert.
        training: throughput and memory of training.
    """

    grid: bool = False
    tradeoff: bool = False
    noise: bool = False
    curve: bool = False
    gradients: bool = False
    training: bool = False


@dataclass(frozen=True)
class Lab:
    """Puts cells together for one sweep.

    Attributes:
        setting: what the experiment is run on.
        budget: how much of it.
        budget_name: for the records.
        predictors: which of the setting's.
        sweep: whose records they are.
    """

    setting: Setting
    budget: Budget
    budget_name: str
    predictors: tuple[str, ...]
    sweep: str = ""

    @property
    def setup(self) -> Setup:
        return Setup.of(self.setting)

    def row(
        self,
        name: str,
        recipe: Recipe | None = None,
        *,
        predictor: str | Pretrained | None = None,
        reference: bool = False,
        guidance: Guidance = Guidance(),
        measured: Measured = Measured(),
        **axes: str | float | bool,
    ) -> Iterator[Result]:
        """A row of the table, over all seeds, and what else is measured of it.

        Args:
            name: the row's label, unique within the sweep, predictor and sampler.
            recipe: of the experts; None for unguided samples.
            predictor: the first of the lab's by default.
            reference: whether the sweep's other rows are compared with this one.
            guidance: how samples are drawn.
            measured: what else is measured.
            axes: what the sweep varies, and this row's values.
        """
        source = None if recipe is None else predictor or self.predictors[0]
        about = self.about(name, recipe, source, reference, tuple(axes.items()))
        seeds = tuple(range(self.budget.seeds))
        banks: list[Experts | None] = [None] * len(seeds)
        if recipe and source and recipe.experts:
            banks = [self.experts(recipe, source, seed) for seed in seeds]
        models = [Model(source, bank) if source else None for bank in banks]
        chosen = guidance.scale is None
        candidates = self._candidates(models[0], guidance) if chosen else ()
        scale = self._scale(candidates, guidance) if source else 0.0
        count = guidance.samples or self.budget.samples
        samples = [
            Samples(self.setup, guidance.sampler, model, scale, _row_seed(seed), count)
            for seed, model in zip(seeds, models, strict=True)
        ]
        scored = Scored(self.setup, tuple(map(Score, samples)), self.budget.resamples)
        some = [model for model in models if model]
        noise = [NoiseAccuracy(self.setup, model, self.budget.noisy_images) for model in some]
        standard = source and Model(source, self._long_trained(source))
        trained = tuple(bank for bank in banks if bank)
        yield Row(
            self.setup,
            about,
            seeds,
            guidance.sampler.spacing,
            scored,
            trained,
            tuple(noise) if measured.noise else (),
            tuple(
                GradientQuality(self.setup, model, standard, self.budget.noisy_images // 5)
                for model in some
                if standard and measured.gradients
            ),
            TransferSpeed(trained[0]) if measured.training and trained else None,
        )
        if measured.grid:
            yield Grid(self.setup, about, samples[0])
        if measured.tradeoff:
            for score in candidates:
                yield TradeoffPoint(self.setup, about, score)
        if measured.curve:
            for seed, cell in zip(seeds, noise, strict=bool(noise)):
                if trained or seed == 0:
                    yield NoiseCurve(self.setup, about, cell, seed)

    def about(
        self,
        name: str,
        recipe: Recipe | None,
        predictor: str | Pretrained | None,
        reference: bool = False,
        axes: tuple[Axis, ...] = (),
    ) -> About:
        """What the records of a row say of themselves."""
        common = About(
            self.sweep,
            self.budget_name,
            name,
            predictor_name(predictor) if predictor else "none",
            axes,
            reference,
        )
        if predictor in self.setting.noisy:
            return replace(common, experts=1, supervision="labelled", adapter="from scratch")
        if recipe is None or not recipe.experts:
            return common
        return replace(
            common,
            experts=recipe.experts,
            supervision=recipe.supervision,
            adapter=recipe.tuning.name,
        )

    def experts(self, recipe: Recipe, predictor: str | Pretrained, seed: int) -> Experts:
        """The bank of a recipe with at least one expert."""
        tuning = self._tuned(recipe.tuning)
        training = Training(
            max(recipe.experts, round(self.budget.steps * recipe.length)),
            self.budget.batch,
            tuning.learning_rate,
            start=recipe.start,
            order=recipe.order,
            keep_optimiser=recipe.keep_optimiser,
            seed=seed,
        )
        labelled = recipe.supervision == "labelled"
        data = TrainingData() if labelled else self.synthetic(recipe.images)
        return Experts(
            self.setup,
            predictor,
            self._ranges(recipe, predictor),
            tuning.adapter,
            training,
            data,
            0.25 if labelled else recipe.temperature,
            recipe.normalised,
        )

    def _tuned(self, tuning: FineTuning) -> FineTuning:
        """As the setting has it: rank and learning rate belong to a size of network."""
        if self.setting.tuned is None:
            return tuning
        lora, rate = self.setting.tuned
        adapter = Adapter((Biases(), Norms(), lora)) if tuning == LORA else tuning.adapter
        return replace(tuning, adapter=adapter, learning_rate=rate)

    def synthetic(self, amount: float = 1.0) -> TrainingData:
        """Synthetic images, in shards that can be drawn side by side.

        Args:
            amount: relative to the budget's.
        """
        count = max(1, round(self.budget.synthetic * amount))
        size = min(SHARD, self.budget.synthetic)
        shards = tuple(
            Synthesis(self.setup, SAMPLER, SYNTHESIS_SEED + start, size)
            for start in range(0, count, size)
        )
        return TrainingData(shards, count if count % size else None)

    def _ranges(self, recipe: Recipe, predictor: str | Pretrained) -> NoiseRanges | BalancedRanges:
        schedule = self.setting.denoiser().schedule
        if recipe.ranges == "transfer loss":
            return BalancedRanges(self.experts(Recipe(experts=1), predictor, 0), recipe.experts)
        if recipe.ranges == "log-SNR":
            return NoiseRanges.equal_log_snr(recipe.experts, schedule)
        ranges = NoiseRanges.equal(recipe.experts, len(schedule))
        return replace(ranges, inclusive=recipe.inclusive)

    def _candidates(self, model: Model | None, guidance: Guidance) -> tuple[Score, ...]:
        """Scores on the selection seeds, one per scale; unguided, the one at scale 0."""
        drawn = Samples(
            self.setup,
            guidance.sampler,
            model,
            0.0,
            SELECTION_SEED,
            self.budget.selection_samples,
        )
        scales = self.budget.scales if model else (0.0,)
        return tuple(Score(replace(drawn, scale=scale)) for scale in scales)

    def _scale(self, candidates: tuple[Score, ...], guidance: Guidance) -> float | Selection:
        if guidance.scale is None:
            return Selection(candidates) if len(candidates) > 1 else self.budget.scales[0]
        if guidance.scale == "usual":
            return SCALE if self.setting.tuned is None else self.budget.scales[0]
        return guidance.scale

    def _long_trained(self, predictor: str | Pretrained) -> Experts:
        recipe = Recipe(supervision="labelled", tuning=FULL, length=REFERENCE_LENGTH)
        return self.experts(recipe, predictor, REFERENCE_SEED)


def _row_seed(seed: int) -> int:
    return ROW_SEED + seed * SEED_STRIDE
