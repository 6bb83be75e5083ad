"""Points of a curve: what one unit reaches at one scale, and how far the scales go on.

A curve goes on to twice its largest scale as long as its best score is there. Which cells there
are is settled before a run, so those of all doublings are; the ones that turn out not to be needed
draw nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ablations.cells.guidance import Model
from ablations.cells.pixel_reference import PixelReference
from ablations.cells.samples import Samples, SampleShard, record_scale
from ablations.cells.scores import judge
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import GuidedTask, device
from ppap.evaluation.features import Features, extract
from ppap.evaluation.intervals import fid_corrected
from ppap.evaluation.metrics import density_coverage, image_quality
from ppap.evaluation.pixels import saturation
from ppap.files.images import from_uint8
from ppap.guidance.likelihoods import AtLeastNoise
from ppap.tasks.classes import ClassTask

__all__ = [
    "CurveScore",
    "ExtendedSamples",
    "Extension",
    "Points",
    "SamplesAtScore",
    "best_place",
    "mean_scores",
]

QUALITY = ("fid", "kid", "precision", "recall")
SEEN_AT_ONCE = 128


@dataclass(frozen=True)
class CurveScore(Cell):
    """Figures of the samples of one unit at one scale; none if the curve ended before it.

    Attributes:
        samples: guided by one model, or by none.
        task: by which they are judged.
        reference: of the pixels.
    """

    samples: Samples
    task: str
    reference: PixelReference

    VERSION: ClassVar[int] = 2

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from self.samples.guidance_inputs()

    def label(self) -> str:
        return f"point of {self.samples.guided_by}"

    def seconds(self) -> float:
        share = EXTENDED_SHARE if isinstance(self.samples, ExtendedSamples) else 1.0
        return share * (0.6 + 0.008 * self.samples.count)

    def compute(self, load: Load) -> Artifact:
        drawn = load(self.samples)
        if not drawn.arrays:
            return Artifact({"figures": None})
        setting = self.samples.setup.load()
        task = setting.tasks[self.task]
        images = from_uint8(torch.from_numpy(drawn.arrays["images"].copy()))
        targets = self.samples.targets(self.task)
        seen = extract(setting.extractor(), images)
        scores = task.figures(task.selection.metric, judge(task, images, seen), targets)
        ends, belief = saturation(images), self.belief(load, task, images, targets)
        quality = image_quality(seen, setting.reference())
        figures = {
            "scale": record_scale(drawn.meta["scales"]),
            "samples": len(images),
            "score": float(scores.mean()),
            **{name: getattr(quality, name) for name in QUALITY},
            **self.pixel_figures(load, images),
            "saturation": ends.both,
            "saturation_bright": ends.high,
            "belief": None if belief is None else float(belief.mean()),
        }
        arrays = {"scores": scores} | ({} if belief is None else {"belief": belief.numpy()})
        return Artifact({"figures": figures, "extractor": seen.extractor}, arrays)

    def pixel_figures(self, load: Load, images: Tensor) -> dict[str, float | None]:
        """What the pixels alone say of (N, C, H, W) images in [-1, 1].

        The distance is that of so many images, and corrected for their number, where there are
        enough of them.
        """
        extractor, reference = self.reference.read(load)
        seen: Features = extract(extractor, images)
        quality = image_quality(seen, reference)
        _, coverage = density_coverage(seen.features, reference)
        enough = len(seen) >= 2 * reference.mean.size
        return {
            **{f"pixel_{name}": float(getattr(quality, name)) for name in QUALITY},
            "pixel_fid_corrected": fid_corrected(seen, reference) if enough else None,
            "pixel_coverage": coverage,
        }

    def belief(
        self, load: Load, task: GuidedTask, images: Tensor, targets: Tensor
    ) -> Tensor | None:
        """(N,) probability that the guide gives each target, seeing the image as a clean one.

        A bank is asked by its expert of least noise. None where nothing guides, or what does has
        no probabilities.
        """
        models = [getattr(part.model, "model", part.model) for part in self.samples.guidance]
        if not models or not isinstance(models[0], Model) or not isinstance(task.task, ClassTask):
            return None
        look = AtLeastNoise(models[0].predict(self.samples.setup, load))
        with torch.no_grad():
            seen = [look(part.to(device())).cpu() for part in torch.split(images, SEEN_AT_ONCE)]
        return task.task.log_likelihood(torch.cat(seen), targets).exp()


Points = tuple[tuple[CurveScore, ...], ...]
"""Of a curve: by scale, rising, and in each of them by unit."""
EXTENDED_SHARE = 0.25
"""Of the doublings, about how many are needed: for the estimate of the time left."""


def mean_scores(points: Points, load: Load) -> list[float]:
    """Mean score over units at each scale that was measured."""
    found: list[list[Any]] = [[load(score).meta["figures"] for score in row] for row in points]
    return [float(np.mean([figures["score"] for figures in row])) for row in found if all(row)]


def best_place(scores: list[float], higher_is_better: bool) -> int:
    """Which of the scores is best; of equals, that of the smallest scale."""
    return int(np.argmax(scores) if higher_is_better else np.argmin(scores))


@dataclass(frozen=True)
class Extension(Cell):
    """Whether a curve goes on: its best mean score is that of the largest scale so far.

    At the other end it needs no going on, since below the smallest scale there is a known one, 0,
    that of unguided samples.

    Attributes:
        points: so far.
        higher_is_better: of scores.
    """

    points: Points
    higher_is_better: bool

    def label(self) -> str:
        return "does the curve go on?"

    def seconds(self) -> float:
        return 0.05

    def compute(self, load: Load) -> Artifact:
        scores = mean_scores(self.points, load)
        ended = len(scores) < len(self.points)
        further = not ended and best_place(scores, self.higher_is_better) == len(scores) - 1
        return Artifact({"further": further})


@dataclass(frozen=True, kw_only=True)
class SamplesAtScore(Samples):
    """Of a curve's samples those of its first unit at the scale whose mean score is nearest to one.

    Attributes:
        points: of the curve.
        score: wanted.
    """

    points: Points
    score: float

    @classmethod
    def of(cls, points: Points, score: float) -> SamplesAtScore:
        """With what all of a curve's samples have in common."""
        first = points[0][0].samples
        common = {f.name: getattr(first, f.name) for f in fields(Samples)}
        return cls(**common, points=points, score=score)

    def shards(self) -> tuple[SampleShard, ...]:
        return ()

    def inputs(self) -> Iterator[Cell]:
        for row in self.points:
            yield from row
            yield row[0].samples

    def seconds(self) -> float:
        return 0.1

    def compute(self, load: Load) -> Artifact:
        scores = mean_scores(self.points, load)
        place = int(np.argmin([abs(score - self.score) for score in scores]))
        drawn = load(self.points[place][0].samples)
        told = {"scales": drawn.meta["scales"], "score": scores[place]}
        return Artifact(told, drawn.arrays)


@dataclass(frozen=True, kw_only=True)
class ExtendedSamples(Samples):
    """Samples at a larger scale, which are drawn if the curve goes on so far; none if not.

    Attributes:
        extension: decides.
    """

    extension: Extension

    def shards(self) -> tuple[SampleShard, ...]:
        return ()

    def inputs(self) -> Iterator[Cell]:
        yield self.extension
        yield from super().inputs()

    def seconds(self) -> float:
        return EXTENDED_SHARE * super().seconds()

    def compute(self, load: Load) -> Artifact:
        if not load(self.extension).meta["further"]:
            return Artifact({"scales": []})
        return super().compute(load)
