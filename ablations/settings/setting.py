"""Settings: one scale of the whole experiment each, as data and makers of networks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ablations.errors import UserError
from ppap.diffusion.denoiser import Denoiser
from ppap.evaluation.features import FeatureExtractor
from ppap.evaluation.metrics import Quality
from ppap.evaluation.reference import ReferenceStatistics
from ppap.experts.adapters.lora import Lora
from ppap.files.images import Images
from ppap.predictors.predictor import Predictor
from ppap.tasks.protocol import Task

__all__ = [
    "GuidedTask",
    "Metric",
    "RunPath",
    "SelectionRule",
    "Setting",
    "Split",
    "TargetOrder",
    "device",
]

Split = Literal["train", "test"]
RunPath = Literal["plain", "fast", "bf16"]
"""How networks are run: module by module, or merged, folded and compiled."""
Metric = Callable[[Any, Tensor], Any]
"""(prediction for N images, (N, ...) targets) -> (N,) figures, an array or a tensor."""

OF_SAMPLES = (*(one.name for one in fields(Quality)), "fid_infinity", "diversity", "features")
OF_ROWS = (
    "key", "sweep", "predictor", "method", "sampler", "axes", "scale", "scales", "samples",
    "count", "extractor", "seed", "sample", "target",
)  # fmt: skip
"""What records and outcomes have beside a task's figures, which are called otherwise."""


@dataclass(frozen=True)
class SelectionRule:
    """How a guidance scale is selected: of the scales near the best, that of the lowest FID.

    Attributes:
        metric: the task's figure by which scales are near the best.
        margin: how far from the best is near.
        relative: whether the margin is a share of the least error: of the figure itself where
            lower is better, of 1 minus the figure where higher is better.
        higher_is_better: whether the best figure is the highest.
    """

    metric: str
    margin: float
    relative: bool = False
    higher_is_better: bool = True

    def select(self, scores: Sequence[Mapping[str, Any]]) -> int:
        """Which of the scores, each with the metric and ``fid``, is selected."""
        near = self.near_best([score[self.metric] for score in scores])
        return min((k for k, kept in enumerate(near) if kept), key=lambda k: scores[k]["fid"])

    def near_best(self, figures: Sequence[float]) -> list[bool]:
        """Whether each figure is within the margin of the best."""
        if self.relative:
            errors = [1 - figure for figure in figures] if self.higher_is_better else figures
            return [error <= min(errors) * (1 + self.margin) for error in errors]
        if self.higher_is_better:
            return [figure >= max(figures) - self.margin for figure in figures]
        return [figure <= min(figures) + self.margin for figure in figures]


@dataclass(frozen=True)
class TargetOrder:
    """Which target each sample of a row has; targets have numbers.

    Attributes:
        paired: whether two consecutive samples share their target, so that how far they differ
            tells how much is left to chance.
        from_seed: whether targets are numbered from the row's first seed on, so that rows of
            other seeds have others; from 0 if not.
    """

    paired: bool = False
    from_seed: bool = False

    @property
    def samples_per_target(self) -> int:
        """Consecutive samples of a row that have one target."""
        return 2 if self.paired else 1

    def numbers(self, first_seed: int, places: Iterable[int]) -> list[int]:
        """Numbers of the targets of the row's samples at these places."""
        first = first_seed if self.from_seed else 0
        return [first + place // self.samples_per_target for place in places]


@dataclass(frozen=True)
class GuidedTask:
    """One thing that images can be guided towards, such as a class or a depth map.

    Attributes:
        task: as it guides.
        transferred: the temperature of the teacher -> the task as experts are trained on it.
        predictor: name of the off-the-shelf one.
        labelled: reads a labelled split: images (N, C, H, W) uint8 and targets (N, ...).
        targets: (N, ...) by number, from no labelled split; in all tasks, targets of one number
            describe the same image.
        metrics: figures of every image, by name in the records; no two of a setting share one.
        selection: the rule that selects this task's guidance scale.
        judge: makes the independent network that predicts from images (N, C, H, W) in [-1, 1];
            None for the logits of the feature extractor.
        scale: guidance scales relative to the budget's, which are a classifier's: a likelihood
            per pixel is flatter.
        shown_at: the score at which samples of several arms are shown side by side; None for
            samples at one scale.
    """

    task: Task
    transferred: Callable[[float], Task]
    predictor: str
    labelled: Callable[[Split], tuple[Images, Tensor]]
    targets: Callable[[Sequence[int]], Tensor]
    metrics: Mapping[str, Metric]
    selection: SelectionRule
    judge: Callable[[], nn.Module] | None = None
    scale: float = 1.0
    shown_at: float | None = None

    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """So many images (N, C, H, W) uint8 of the test split, and their targets (N, ...).

        The first ones; of a split that is sorted by class, as folders are, where these would be
        of few classes, ones that are evenly spread.
        """
        images, targets = self.labelled("test")
        chosen: slice | Tensor = slice(count)
        if targets.ndim == 1 and len(targets) > count and bool((targets.diff() >= 0).all()):
            chosen = torch.linspace(0, len(targets) - 1, count).round().long()
        return images[chosen], targets[chosen]

    def figures(self, metric: str, predicted: Any, targets: Tensor) -> npt.NDArray[Any]:
        """(N,) figures of N images by one of the metrics.

        Args:
            metric: by name.
            predicted: by the judge, for the N images.
            targets: (N, ...).

        Raises:
            UserError: unless there is a finite one of every image.
        """
        found = np.asarray(self.metrics[metric](predicted, targets))
        if found.shape != (len(targets),) or not np.isfinite(found).all():
            unknown = int((~np.isfinite(found)).sum())
            raise UserError(
                f"the figure {metric} of {len(targets)} images has shape {found.shape} and is not "
                f"finite {unknown} times",
                "let the metric return one finite number for each image",
            )
        return found


@dataclass(frozen=True)
class Setting:
    """Everything an experiment at one scale needs.

    Attributes:
        name: as on the command line.
        classes: their names, in label order.
        predictors: names of the off-the-shelf classifiers.
        denoiser: makes the unconditional diffusion model.
        predictor: makes an off-the-shelf predictor, by name.
        untrained: makes a classifier of another width, to be trained on clean images.
        extractor: makes the independent evaluator.
        reference: reads the evaluator's statistics of the test set.
        fingerprint: changes when any weight changes.
        tasks: what images can be guided towards, by name; ``"class"`` is always among them.
        order: which sample has which target.
        target_images: images (N, C, H, W) uint8 from which the targets of these numbers were
            taken; None where a target is a class alone.
        noisy: makes noise-aware classifiers that were published, by the method they stand for.
        upsample: (samples (N, C, h, w), a seed each) -> images, where the guided denoiser is
            the first stage of a cascade.
        published: LoRA as published, and the learning rate of all adapters; None for those that
            suit the small networks trained here.
        mirrored: whether experts see images flipped, too, as in the paper.
        batch: images per network call when sampling; fewer where memory does not suffice.
        budget: how much is run unless another is asked for.
        denoise_seconds: per image and step, on one core of the reference machine; for the
            estimate of the time left.
        path: on which its networks are run; both give the same but for rounding.

    Raises:
        UserError: for no predictor or no task ``"class"``; or for two figures of one name, one that
            is called like what records have besides, or a selection by none of its task's.
    """

    name: str
    classes: tuple[str, ...]
    predictors: tuple[str, ...]
    denoiser: Callable[[], Denoiser]
    predictor: Callable[[str], Predictor]
    untrained: Callable[[int], Predictor]
    extractor: Callable[[], FeatureExtractor]
    reference: Callable[[], ReferenceStatistics]
    fingerprint: str
    tasks: Mapping[str, GuidedTask]
    order: TargetOrder = TargetOrder()
    target_images: Callable[[Sequence[int]], Tensor] | None = None
    noisy: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    upsample: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    published: tuple[Lora, float] | None = None
    mirrored: bool = False
    batch: int = 128
    budget: str = "default"
    denoise_seconds: float = 0.0019
    path: RunPath = "plain"

    def __post_init__(self) -> None:
        if not self.predictors or "class" not in self.tasks:
            raise UserError(
                f"setting {self.name} has the predictors {self.predictors} and the tasks "
                f"{', '.join(self.tasks) or 'none'}",
                'give one predictor or more, and a task called "class"',
            )
        for name, times in Counter(self.metrics).items():
            if times > 1 or name in (*OF_SAMPLES, *OF_ROWS):
                whose = f"{times} tasks" if times > 1 else "its samples and a task"
                raise UserError(
                    f"setting {self.name} has a figure {name} of {whose}, of which a record would "
                    "keep one",
                    "give the task's a name of its own",
                )
        for name, task in self.tasks.items():
            if task.selection.metric not in task.metrics:
                raise UserError(
                    f"task {name} of setting {self.name} selects by {task.selection.metric}",
                    f"choose from its figures: {', '.join(task.metrics)}",
                )

    def labelled(self, split: Split) -> tuple[Images, Tensor]:
        """A split: images (N, C, H, W) uint8 and their classes (N,)."""
        return self.tasks["class"].labelled(split)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures of every image, of all tasks."""
        return tuple(name for task in self.tasks.values() for name in task.metrics)


def device() -> torch.device:
    """Where networks run: ``$PPAP_DEVICE``, or a GPU if there is one."""
    named = os.environ.get("PPAP_DEVICE")
    return torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))
