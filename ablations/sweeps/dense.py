"""The sweeps of guidance towards depth maps, segmentations and classes of whole scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from ablations.cells.dense import (
    Panel,
    ScaleChoice,
    Steering,
    TaskExperts,
    TaskModel,
    Trajectory,
    WantedSamples,
    WantedScore,
    WantedScored,
)
from ablations.cells.results import Result, Row
from ablations.sweeps.headline import TUNINGS
from ablations.sweeps.lab import LORA, ROW_SEED, SAMPLER, SEED_STRIDE, SELECTION_SEED, Lab, Recipe
from ablations.sweeps.recipes import METHODS, PPAP
from ablations.sweeps.registry import sweep

TASKS = ("class", "depth", "segmentation")
ALL = "all three"
FIGURES = ("depth_rmse", "depth_delta_1", "mean_iou", "pixel_error", "accuracy")
SCALES = {"class": 1.0, "depth": 20.0, "segmentation": 20.0}
"""Guidance scales relative to the budget's: a likelihood per pixel is flatter than a class's."""


@sweep("dense", metrics=(*FIGURES, "fid", "diversity", "recall"), needs=TASKS)
def dense(lab: Lab) -> Iterator[Result]:
    """Guidance towards a class, a depth map, a segmentation, and all three.

    Each sample is to show what a scene of its own shows, of which the guides are told one thing
    or all. Every row is judged on all of them, by evaluators of other architectures. Each
    guide's scale is chosen on seeds and scenes that no row is measured on, where it guides alone.
    Differences are to the naive guide.
    """
    yield from steered_row(lab, "unguided", None, (), pictures=True)
    for tasks in (*((task,) for task in TASKS), TASKS):
        for name, recipe in METHODS.items():
            first = name == "naive"
            yield from steered_row(lab, name, recipe, tasks, reference=first, pictures=True)


@sweep(
    "dense-experts",
    axes={"experts": "log", "task": "category"},
    metrics=(*FIGURES, "fid", "diversity"),
    figure="none",
    needs=TASKS,
)
def dense_experts(lab: Lab) -> Iterator[Result]:
    """Number of experts of depth and segmentation, at equal total training.

    PPAP with N experts, which share one budget of training samples. Differences are to one
    expert.
    """
    for task in TASKS[1:]:
        for count in lab.budget.expert_counts:
            recipe, axes = replace(PPAP, experts=count), {"experts": count, "task": task}
            yield from steered_row(
                lab,
                f"{count} expert{'s' * (count > 1)}",
                recipe,
                (task,),
                reference=count == 1,
                **axes,
            )


@sweep(
    "dense-peft",
    axes={"norm and bias": "category", "task": "category"},
    metrics=("trainable_share", *FIGURES, "fid"),
    figure="none",
    needs=TASKS,
)
def dense_peft(lab: Lab) -> Iterator[Result]:
    """What is trained of a depth estimator and of a segmenter.

    Five data-free experts by every kind of adapter, on convolutions of encoder and decoder.
    Differences are to the paper's adapter: loralib's LoRA with biases and norms.
    """
    for task in TASKS[1:]:
        for name, tuning, trained in TUNINGS:
            if name == "OFT":
                continue  # peft's OFT is for linear layers
            label = f"{name} + norm, bias" if trained == "with" else name
            axes = {"norm and bias": trained, "task": task}
            recipe = replace(PPAP, tuning=tuning)
            yield from steered_row(lab, label, recipe, (task,), reference=tuning == LORA, **axes)


def steered_row(
    lab: Lab,
    name: str,
    recipe: Recipe | None,
    tasks: tuple[str, ...],
    reference: bool = False,
    pictures: bool = False,
    **axes: str | float | bool,
) -> Iterator[Result]:
    """A row of samples that are guided by some tasks at once, over all seeds.

    Args:
        lab: of the sweep.
        name: the row's label, unique among those of the same tasks.
        recipe: of every task's experts; None for unguided samples.
        tasks: that guide; none for unguided samples.
        reference: whether the other rows of the same tasks are compared with this one.
        pictures: whether some are shown.
        axes: what the sweep varies, and this row's values.
    """
    told = {0: None, 1: tasks[0] if tasks else None}.get(len(tasks), ALL)
    about = lab.about(name, recipe, told, reference, tuple(axes.items()))
    seeds = tuple(range(lab.budget.seeds))
    models = [[_model(lab, recipe, task, seed) for task in tasks] for seed in seeds if recipe]
    choices = [_choice(lab, model) for model in models[0]] if recipe else []
    samples = [
        WantedSamples(
            lab.setup,
            SAMPLER,
            tuple(map(Steering, models[seed], choices)) if recipe else (),
            ROW_SEED + seed * SEED_STRIDE,
            lab.budget.samples,
        )
        for seed in seeds
    ]
    scores = tuple(map(WantedScore, samples))
    banks = tuple(model.experts for of_seed in models for model in of_seed if model.experts)
    scored = WantedScored(lab.setup, scores, lab.budget.resamples)  # type: ignore[arg-type]
    yield Row(lab.setup, about, seeds, SAMPLER.spacing, scored, banks)
    if pictures:
        yield Panel(lab.setup, about, samples[0])
    if pictures and told == ALL and recipe == PPAP:
        yield Trajectory(lab.setup, about, samples[0])


def _model(lab: Lab, recipe: Recipe, task: str, seed: int) -> TaskModel:
    predictor = lab.setting.tasks[task].predictor
    if not recipe.experts:
        return TaskModel(predictor, task=task)
    bank = lab.experts(recipe, predictor, seed)
    facts = {field.name: getattr(bank, field.name) for field in fields(bank)}
    return TaskModel(predictor, TaskExperts(**facts, task=task), task)


def _choice(lab: Lab, model: TaskModel) -> ScaleChoice:
    """On the selection seeds, one candidate per scale."""
    candidates = (
        WantedSamples(
            lab.setup,
            SAMPLER,
            (Steering(model, scale * SCALES[model.task]),),
            SELECTION_SEED,
            lab.budget.selection_samples,
        )
        for scale in lab.budget.scales
    )
    return ScaleChoice(model.task, tuple(map(WantedScore, candidates)))
