"""The builder of sweeps: from a few words to the cells of a table row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ablations.cells.chosen import ChosenRefinement
from ablations.cells.experts import Experts
from ablations.cells.guidance import Guidance, Guiding, Model
from ablations.cells.intervals import QUALITY, RowFigures
from ablations.cells.noise import GradientQuality, NoiseAccuracy
from ablations.cells.pictures import Grid, Panel
from ablations.cells.plugins import Method
from ablations.cells.predictors import Pretrained, predictor_name
from ablations.cells.refined import Refined
from ablations.cells.results import About, Axis, NoiseCurve, Result, Row, TradeoffPoint
from ablations.cells.samples import AnySampler, Samples, sampler_name
from ablations.cells.scores import Score
from ablations.cells.selection import Selection
from ablations.cells.setup import Setup
from ablations.cells.speed import TransferSpeed
from ablations.cells.synthesis import TrainingData
from ablations.errors import UserError
from ablations.settings.budget import Budget
from ablations.settings.setting import Setting
from ablations.sweeps.banks import SAMPLER, long_trained_bank, synthetic_data, trained_bank
from ablations.sweeps.recipes import PPAP, Choice, Recipe

__all__ = ["TOGETHER", "Lab", "Measured", "Models", "Sampling"]

Models = tuple[Guiding, ...]
"""What guides a row's samples of one seed, all at once; none for unguided samples."""
SCALE = 16.0
"""Where it is not selected: on noise-aware guides the trade-off is flat around it."""
TOGETHER = "all three"
"""What records call the tasks of a setting that guide together."""
SELECTION_SEED, ROW_SEED, SEED_STRIDE = 2 * 10**9, 3 * 10**9, 10**7
CHOICE_SEED = 25 * 10**8
FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class Sampling:
    """How a row is sampled.

    Attributes:
        sampler: DDIM-25 by default.
        scale: None selects each guide's on the selection seeds, where it guides alone; the
            usual one is :data:`SCALE`, or the first of the budget's in a setting with published
            hyper-parameters.
        samples: per seed; None takes the budget's.

    Raises:
        UserError: for a scale that is neither a number nor one of these, or fewer samples than can
            be judged.
    """

    sampler: AnySampler = SAMPLER
    scale: float | Literal["usual"] | None = "usual"
    samples: int | None = None

    def __post_init__(self) -> None:
        word = isinstance(self.scale, str) and self.scale != "usual"
        if word or not (isinstance(self.scale, str | None) or math.isfinite(self.scale)):
            raise UserError(
                f"a row's guidance scale cannot be {self.scale!r}",
                'give a number, "usual", or None to have it selected',
            )
        if self.samples is not None and self.samples < FEWEST_SAMPLES:
            raise UserError(
                f"a row draws {FEWEST_SAMPLES} samples a seed or more, got {self.samples}",
                "raise them: of fewer there is neither precision nor recall",
            )


@dataclass(frozen=True)
class Measured:
    """What is measured of a row's samples, and besides.

    Attributes:
        quality: figures of all samples together besides FID.
        pictures: samples to look at.
        tradeoff: accuracy and FID at every scale, of a selected scale.
        noise: the model's own accuracy on noisy images; as a number in the row.
        curve: and as a curve.
        gradients: cosine with the gradient of a long-trained expert.
        training: throughput and memory of training.
    """

    quality: tuple[str, ...] = QUALITY
    pictures: bool = False
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
        rows: only these, by their labels; all if there are none.
        tasks: only what these guide, each by itself, and all together if :data:`TOGETHER` is one;
            all of it if there are none.
        plugins: modules of guides that are compared with the others.
        scales: of guidance, for all rows; none where the sweeps and the budget say which.
        changes: of every recipe that has experts: fields and their values.
    """

    setting: Setting
    budget: Budget
    budget_name: str
    predictors: tuple[str, ...]
    sweep: str = ""
    rows: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    changes: tuple[tuple[str, str | float | bool], ...] = ()

    @property
    def setup(self) -> Setup:
        return Setup.of(self.setting)

    def asked_for(self, predictor: str) -> bool:
        """Whether results are wanted of what records call so: a predictor, or a task.

        A predictor that has no task for a name guides towards classes.
        """
        named = predictor == TOGETHER or predictor in self.setting.tasks
        guided = predictor if named else "class"
        return not self.tasks or predictor == "none" or guided in self.tasks

    @property
    def seeds(self) -> range:
        """Training seeds of every row."""
        return range(self.budget.seeds)

    def row(
        self,
        name: str,
        recipe: Recipe | None = None,
        *,
        predictor: str | Pretrained | None = None,
        reference: bool = False,
        sampling: Sampling = Sampling(),
        measured: Measured = Measured(),
        **axes: str | float | bool,
    ) -> Iterator[Result]:
        """A row of class guidance, over all seeds, and what else is measured of it.

        Args:
            name: the row's label, unique within the sweep, predictor and sampler.
            recipe: of the experts; None for unguided samples.
            predictor: the first of the lab's by default.
            reference: whether the sweep's other rows are compared with this one.
            sampling: how samples are drawn.
            measured: what is measured.
            axes: what the sweep varies, and this row's values.
        """
        source = None if recipe is None else predictor or self.predictors[0]
        shown = "none" if source is None else predictor_name(source)
        about = self.about(name, recipe, shown, reference, tuple(axes.items()))
        models: list[Models] = [()] * len(self.seeds)
        if recipe and source:
            models = [(self.model(recipe, source, seed),) for seed in self.seeds]
        yield from self.guided_row(about, models, sampling, measured)

    def guided_row(
        self, about: About, models: Sequence[Models], sampling: Sampling, measured: Measured
    ) -> Iterator[Result]:
        """A row of samples that are guided by some models at once, one group per seed."""
        if self.scales and sampling.scale == "usual":
            sampling = replace(sampling, scale=None)
        candidates = [self._candidates((model,), sampling) for model in models[0]]
        scales = [
            self._scale(model, scores, sampling)
            for model, scores in zip(models[0], candidates, strict=True)
        ]
        samples = [
            Samples(
                self.setup,
                sampling.sampler,
                tuple(map(Guidance, together, scales)),
                ROW_SEED + seed * SEED_STRIDE,
                sampling.samples or self.budget.samples,
            )
            for seed, together in zip(self.seeds, models, strict=True)
        ]
        scores = tuple(map(Score, samples))
        figures = RowFigures(self.setup, scores, self.budget.resamples, measured.quality)
        yield self._row(about, models, sampling, measured, figures)
        if measured.pictures:
            picture = Panel if self.setting.target_images else Grid
            yield picture(self.setup, about, samples[0])
        if measured.tradeoff and sampling.scale is None:
            for score in candidates[0] if candidates else self._candidates((), sampling):
                yield TradeoffPoint(self.setup, about, score)
        if measured.curve:
            for seed, (model,) in zip(self.seeds, models, strict=True):
                if model.experts or seed == 0:
                    yield NoiseCurve(self.setup, about, self._noise_accuracy(model), seed)

    def _row(
        self,
        about: About,
        models: Sequence[Models],
        sampling: Sampling,
        measured: Measured,
        figures: RowFigures,
    ) -> Row:
        every = [model for together in models for model in together]
        trained = tuple(model.experts for model in every if model.experts)
        return Row(
            self.setup,
            about,
            tuple(self.seeds),
            sampler_name(sampling.sampler),
            figures,
            trained,
            tuple(map(self._noise_accuracy, every)) if measured.noise else (),
            tuple(map(self._gradient_quality, every)) if measured.gradients else (),
            TransferSpeed(trained[0]) if measured.training and trained else None,
        )

    def about(
        self,
        name: str,
        recipe: Recipe | None,
        predictor: str = "none",
        reference: bool = False,
        axes: tuple[Axis, ...] = (),
    ) -> About:
        """What the records of a row say of themselves."""
        # A record holds no numbers of NumPy's, over whose ranges a sweep may go.
        axes = tuple((n, v.item() if isinstance(v, np.generic) else v) for n, v in axes)
        common = About(self.sweep, self.budget_name, name, predictor, axes, bool(reference))
        if predictor in self.setting.noisy:
            return replace(common, experts=1, supervision="labelled", adapter="from scratch")
        if recipe is None or not recipe.experts:
            return common
        recipe = self.changed(recipe)
        return replace(
            common,
            experts=recipe.experts,
            supervision=recipe.supervision,
            adapter=recipe.tuning.name,
        )

    def model(
        self, recipe: Recipe, predictor: str | Pretrained, seed: int, task: str = "class"
    ) -> Guiding:
        """What guides by a recipe: the predictor as it is, or with experts.

        Raises:
            UserError: for a predictor that the setting does not have.
        """
        setting = self.setting
        known = *setting.predictors, *setting.noisy, *(t.predictor for t in setting.tasks.values())
        if isinstance(predictor, str) and predictor not in known:
            raise UserError(
                f"setting {setting.name} has no predictor {predictor!r}",
                f"choose from {', '.join(dict.fromkeys(known))}",
            )
        trained = self.experts(recipe, predictor, seed, task) if recipe.experts else None
        model = Model(predictor, trained, task)
        if isinstance(recipe.refinement, Choice):
            return Refined(model, self._choice(recipe.refinement, model, seed))
        if recipe.refinement is not None:
            return Refined(model, recipe.refinement)
        return model if recipe.guide is None else Method.of(recipe.guide, model)

    def experts(
        self, recipe: Recipe, predictor: str | Pretrained, seed: int, task: str = "class"
    ) -> Experts:
        """The bank of a recipe with at least one expert."""
        recipe = self.changed(recipe)
        return trained_bank(self.setting, self.budget, recipe, predictor, seed, task)

    def _choice(self, choice: Choice, model: Model, seed: int) -> ChosenRefinement:
        """The cell that chooses, of a training seed's experts."""
        return ChosenRefinement(
            self.setup,
            model,
            choice.sampler,
            choice.among(model.task),
            tuple(scale * self._relative_scale(model) for scale in choice.scales),
            CHOICE_SEED + seed * SEED_STRIDE,
            min(choice.images, self.budget.selection_samples),
        )

    def changed(self, recipe: Recipe) -> Recipe:
        """A recipe with the lab's changes.

        Raises:
            UserError: if the sweep varies what is to be changed, or the setting fixes it.
        """
        for name, value in self.changes:
            if name == "learning_rate":
                if self.setting.published is not None:
                    raise UserError(
                        f"setting {self.setting.name} has a published learning rate",
                        "leave out --set learning_rate",
                    )
                recipe = replace(recipe, tuning=replace(recipe.tuning, learning_rate=value))
                continue
            if getattr(recipe, name) != getattr(PPAP, name):
                raise UserError(
                    f"sweep {self.sweep} varies {name} itself", f"leave out --set {name}"
                )
            recipe = replace(recipe, **{name: value})
        return recipe

    def synthetic(self, amount: float = 1.0) -> TrainingData:
        """Synthetic images, relative to the budget's."""
        return synthetic_data(self.setting, self.budget, amount)

    def _candidates(self, models: Models, sampling: Sampling) -> tuple[Score, ...]:
        """Scores on the selection seeds, one per scale; of unguided samples, one."""
        if sampling.scale is not None:
            return ()
        drawn = Samples(
            self.setup, sampling.sampler, (), SELECTION_SEED, self.budget.selection_samples
        )
        guidance = [
            tuple(Guidance(model, scale * self._relative_scale(model)) for model in models)
            for scale in (self.budget.scales if models else (0.0,))
        ]
        return tuple(Score(replace(drawn, guidance=parts)) for parts in guidance)

    def _scale(
        self, model: Guiding, candidates: tuple[Score, ...], sampling: Sampling
    ) -> float | Selection:
        if len(candidates) > 1:
            return Selection(self.setting.tasks[model.task].selection, candidates)
        if sampling.scale is not None and sampling.scale != "usual":
            return float(sampling.scale)
        usual = sampling.scale == "usual" and self.setting.published is None
        return (SCALE if usual else self.budget.scales[0]) * self._relative_scale(model)

    def _relative_scale(self, model: Guiding) -> float:
        return self.setting.tasks[model.task].scale

    def _noise_accuracy(self, guiding: Guiding) -> NoiseAccuracy:
        return NoiseAccuracy(self.setup, _predicting(guiding), self.budget.noisy_images)

    def _gradient_quality(self, guiding: Guiding) -> GradientQuality:
        model = _predicting(guiding)
        standard = long_trained_bank(self.setting, self.budget, model.predictor)
        reference = Model(model.predictor, standard)
        count = max(1, self.budget.noisy_images // 5)
        return GradientQuality(self.setup, model, reference, count)


def _predicting(guiding: Guiding) -> Model:
    """What a guide follows, seen as a predictor of noisy images."""
    found = getattr(guiding, "model", guiding)
    if not isinstance(found, Model):
        raise UserError(
            f"{guiding.name} predicts nothing from a noisy image",
            "measure neither its accuracy on noise nor its gradients",
        )
    return found
