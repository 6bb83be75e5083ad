"""The sweeps of guidance towards depth maps, segmentations and classes of whole scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablations.cells.pictures import Trajectory
from ablations.cells.results import Result, Row
from ablations.sweeps.fine_tunings import FINE_TUNINGS
from ablations.sweeps.lab import TOGETHER, Lab, Measured, Sampling
from ablations.sweeps.recipes import LORA, METHODS, PPAP, Recipe
from ablations.sweeps.registry import sweep

TASKS = ("class", "depth", "segmentation")
FIGURES = ("depth_rmse", "depth_delta_1", "mean_iou", "pixel_error", "accuracy")


@sweep("dense", metrics=(*FIGURES, "fid", "diversity", "recall"), needs=TASKS)
def dense(lab: Lab) -> Iterator[Result]:
    """Guidance towards a class, a depth map, a segmentation, and all three.

    Every two samples have a scene of their own as their target. The guides know its class, its
    depth map, its segmentation, or all three; every row is judged on all of them, by evaluators
    of other architectures. Each guide's scale is selected on seeds and scenes that no row is
    measured on, where it guides alone. Differences are to the naive guide.
    """
    yield from dense_row(lab, "unguided", None, (), pictures=True)
    for tasks in (*((task,) for task in TASKS), TASKS):
        for name, recipe in METHODS.items():
            first = name == "naive"
            yield from dense_row(lab, name, recipe, tasks, reference=first, pictures=True)


@sweep(
    "dense-experts",
    axes={"experts": "log", "task": "category"},
    metrics=(*FIGURES, "fid", "diversity"),
    figure="lines",
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
            yield from dense_row(
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
        for name, tuning, trained in FINE_TUNINGS:
            if name == "OFT":
                continue  # peft's OFT is for linear layers
            label = f"{name} + norm, bias" if trained == "with" else name
            axes = {"norm and bias": trained, "task": task}
            recipe = replace(PPAP, tuning=tuning)
            yield from dense_row(lab, label, recipe, (task,), reference=tuning == LORA, **axes)


def dense_row(
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
    guided_by = {0: "none", 1: "".join(tasks)}.get(len(tasks), TOGETHER)
    about = lab.about(name, recipe, guided_by, reference, tuple(axes.items()))
    models = [
        tuple(
            lab.model(recipe, lab.setting.tasks[task].predictor, seed, task)
            for task in tasks
            if recipe
        )
        for seed in lab.seeds
    ]
    measured = Measured(quality=("precision", "recall"), pictures=pictures)
    for result in lab.guided_row(about, models, Sampling(scale=None), measured):
        yield result
        if isinstance(result, Row) and pictures and guided_by == TOGETHER and recipe == PPAP:
            yield Trajectory(lab.setup, about, result.figures.scores[0].samples)
