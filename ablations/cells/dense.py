"""Guidance towards what a scene shows: class, depth and segmentation, one or all at once, as cells.

Sample i of a row is to show what scene i // 2 of the setting's wanted scenes shows, so that two
samples share their target and how far they differ tells how much is left to chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from colorsys import hsv_to_rgb
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ablations.cells.results import MEANS_PER_FID, PairedTest, Result, Scored, interval
from ablations.cells.stages import (
    DENOISE_SECONDS,
    Experts,
    Model,
    Setup,
    device,
    load_predictor,
)
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import GuidedTask, Setting
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import trajectory
from ppap.evaluation.features import extract
from ppap.evaluation.intervals import bootstrap_fid, bootstrap_mean
from ppap.evaluation.metrics import image_quality
from ppap.evaluation.reference import ReferenceStatistics
from ppap.experts.bank import ExpertBank
from ppap.experts.transfer import Distillation, Supervision
from ppap.fast.sampling import sample
from ppap.files.images import from_uint8, to_uint8
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from ppap.tasks.tasks import ClassTask, DepthTask, SegmentationTask, Task

__all__ = [
    "PER_TARGET",
    "Panel",
    "ScaleChoice",
    "Steering",
    "TaskExperts",
    "TaskModel",
    "Trajectory",
    "WantedSamples",
    "WantedScore",
    "WantedScored",
]

Bytes = npt.NDArray[np.uint8]

PER_TARGET = 2
CHOICE_MARGIN = 0.05
METRICS = {"class": ("accuracy", None), "depth": ("depth_delta_1", "depth_rmse"),
           "segmentation": ("mean_iou", "pixel_error")}  # fmt: skip
"""Names of each task's score and error in records."""


@dataclass(frozen=True)
class TaskExperts(Experts):
    """A trained expert bank of one of the setting's tasks."""

    task: str = "class"

    def label(self) -> str:
        return f"{self.task}: {super().label()}"

    def training_set(self, load: Load) -> tuple[Tensor, Tensor | None]:
        if self.data.shards:
            return super().training_set(load)
        return self.setup.load().tasks[self.task].labelled("train")

    def learned(self) -> Task:
        """The task as it is learned: depth with its scale, which the teacher has too."""
        if self.task == "depth":
            return DepthTask(aligned=False)
        kinds = {"class": ClassTask, "segmentation": SegmentationTask}
        return kinds[self.task](self.temperature)

    def objective(self, labels: Tensor | None) -> Supervision | Distillation:
        if labels is None:
            return Distillation(self.learned())
        return Supervision(labels, self.learned())


@dataclass(frozen=True)
class TaskModel(Model):
    """What guides, for one of the setting's tasks."""

    task: str = "class"

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> LikelihoodGuide:
        task = setup.load().tasks[self.task].task
        if self.experts is None:
            predictor = load_predictor(setup, self.predictor, load).to(device())
            return naive_guide(predictor, task, targets, scale)
        return self.experts.bank(load).guide(targets, scale, task)


@dataclass(frozen=True)
class Steering:
    """A model, and how strongly it guides."""

    model: TaskModel
    scale: float | ScaleChoice

    def inputs(self) -> Iterator[Cell]:
        """The cells that it is made of."""
        yield from self.model.inputs()
        if isinstance(self.scale, ScaleChoice):
            yield self.scale

    def chosen_scale(self, load: Load) -> float:
        """The guidance scale, read from the choice if it was chosen."""
        if isinstance(self.scale, ScaleChoice):
            return float(load(self.scale).meta["scale"])
        return self.scale


@dataclass(frozen=True)
class WantedSamples(Cell):
    """Generated images, each guided towards its wanted scene by all steerings at once."""

    setup: Setup
    sampler: DDIM | DDPM
    steerings: tuple[Steering, ...]
    first_seed: int
    count: int

    def inputs(self) -> Iterator[Cell]:
        for steering in self.steerings:
            yield from steering.inputs()

    def label(self) -> str:
        tasks = [steering.model.task for steering in self.steerings]
        return f"samples by {', '.join(tasks) or 'nothing'}"

    def seconds(self) -> float:
        guides = sum(steering.model.image_seconds() for steering in self.steerings)
        return self.count * self.sampler.steps * (DENOISE_SECONDS + guides)

    @property
    def wanted(self) -> range:
        """Numbers of the wanted scenes, one per target."""
        return range(self.first_seed, self.first_seed + (self.count + 1) // PER_TARGET)

    def targets(self, task: GuidedTask) -> Tensor:
        """(count, ...) one per sample."""
        return task.wanted(self.wanted).repeat_interleave(PER_TARGET, 0)[: self.count]

    def guide(self, load: Load) -> SumOfGuides:
        """All steerings, with a target per sample."""
        setting = self.setup.load()
        guides = tuple(
            steering.model.guide(
                self.setup,
                load,
                self.targets(setting.tasks[steering.model.task]),
                steering.chosen_scale(load),
            )
            for steering in self.steerings
        )
        return SumOfGuides(guides)

    def compute(self, load: Load) -> Artifact:
        guide = self.guide(load) if self.steerings else None
        seeds = range(self.first_seed, self.first_seed + self.count)
        drawn = sample(self.setup.load().denoiser().to(device()), seeds, guide, self.sampler)
        scales = [steering.chosen_scale(load) for steering in self.steerings]
        return Artifact({"scales": scales}, {"images": to_uint8(drawn).cpu().numpy()})


def single(scales: list[float]) -> float | None:
    """The scale of one guide; 0 of none, None of several."""
    return None if len(scales) > 1 else sum(scales)


@dataclass(frozen=True)
class WantedScore(Cell):
    """What the independent evaluators of all tasks say of samples."""

    samples: WantedSamples

    def seconds(self) -> float:
        return 1.0 + 0.01 * self.samples.count

    def compute(self, load: Load) -> Artifact:
        setting = self.samples.setup.load()
        drawn = load(self.samples)
        images = from_uint8(torch.from_numpy(drawn.arrays["images"].copy()))
        seen = extract(setting.extractor(), images)
        arrays = {"features": seen.features.numpy()}
        for name, task in setting.tasks.items():
            predicted = judged(task, images)
            targets = self.samples.targets(task)
            score, error = METRICS[name]
            arrays[score] = task.task.score(predicted, targets).numpy()
            if error:
                arrays[error] = task.task.errors(predicted, targets).numpy()
        pairs = seen.features[: len(images) // PER_TARGET * PER_TARGET].unflatten(0, (-1, 2))
        spread = (pairs[:, 0] - pairs[:, 1]).norm(dim=1) / typical_distance(setting.reference())
        arrays["diversity"] = spread.numpy()
        quality = image_quality(seen, setting.reference())
        means = {name: float(v.mean()) for name, v in arrays.items() if name != "features"}
        about = {"scales": drawn.meta["scales"], "count": len(images)}
        facts = about | {"extractor": seen.extractor} | means | vars(quality)
        return Artifact(facts, arrays)


def judged(task: GuidedTask, images: Tensor) -> Tensor:
    """The independent evaluator's predictions for (N, C, H, W) images in [-1, 1]."""
    network = task.evaluator()
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(250)])


def typical_distance(reference: ReferenceStatistics) -> float:
    """Mean distance between features of two test images."""
    features = reference.matrix()
    return float((features[1:] - features[:-1]).norm(dim=1).mean())


@dataclass(frozen=True)
class ScaleChoice(Cell):
    """Chooses a guidance scale on seeds and scenes that no row is measured on.

    The rule: of the scales whose task error is within 5 % of the least, the one of the lowest
    FID.

    Attributes:
        task: whose error.
        candidates: one per scale.
    """

    task: str
    candidates: tuple[WantedScore, ...]

    def compute(self, load: Load) -> Artifact:
        scores = [load(score).meta for score in self.candidates]
        score, error = METRICS[self.task]
        errors = [meta[error] if error else 1 - meta[score] for meta in scores]
        limit = min(errors) * (1 + CHOICE_MARGIN)
        near = [meta for meta, found in zip(scores, errors, strict=True) if found <= limit]
        (scale,) = min(near, key=lambda meta: meta["fid"])["scales"]
        return Artifact({"scale": scale})


@dataclass(frozen=True)
class WantedScored(Scored):
    """The samples of a row over all seeds, with intervals of every task's figures."""

    def paired(self, reference: Scored) -> PairedTest:
        return WantedPairedTest(self.setup, self, reference)

    def compute(self, load: Load) -> Artifact:
        scores = [load(score) for score in self.scores]
        metas = [score.meta for score in scores]
        setting = self.setup.load()
        features = [score.arrays["features"] for score in scores]
        metrics: dict[str, Any] = {}
        for name in names_of(setting):
            groups = [score.arrays[name] for score in scores]
            metrics |= interval(name, bootstrap_mean(groups, MEANS_PER_FID * self.resamples))
        fid = bootstrap_fid(features, setting.reference(), self.resamples)
        metrics |= interval("fid", fid)
        metrics["fid_infinity"] = self.fid_infinity(np.concatenate(features), metas[0])
        for name in ("precision", "recall"):
            metrics[name] = float(np.mean([meta[name] for meta in metas]))
        kept = (*names_of(setting), "fid", "precision", "recall")
        return Artifact(
            {
                "scale": single(metas[0]["scales"]),
                "samples": sum(meta["count"] for meta in metas),
                "extractor": metas[0]["extractor"],
                "samples_per_fid": metas[0]["count"],
                "metrics": metrics,
                "per_seed": [{name: meta[name] for name in kept} for meta in metas],
            }
        )


@dataclass(frozen=True)
class WantedPairedTest(PairedTest):
    """A row against the reference row of its task, by every task's figures."""

    def means(self) -> dict[str, str]:
        return {name: name for pair in METRICS.values() for name in pair if name}


def names_of(setting: Setting) -> list[str]:
    """The figures that every image has."""
    both = [METRICS[name] for name in setting.tasks]
    return [name for pair in both for name in pair if name] + ["diversity"]


ROWS = ("target", "its depth", "its labels", "sample", "depth seen", "labels seen")


@dataclass(frozen=True)
class Panel(Result):
    """Pictures: wanted scenes and their maps, samples, and the maps evaluators see in those."""

    samples: WantedSamples
    columns: int = 8

    def compute(self, load: Load) -> Artifact:
        setting, about = self.setup.load(), self.about
        drawn = load(self.samples)
        images = torch.from_numpy(drawn.arrays["images"][::PER_TARGET][: self.columns].copy())
        numbers = self.samples.wanted[: self.columns]
        wanted = {name: task.wanted(numbers) for name, task in setting.tasks.items()}
        seen = {
            name: task.task.target(judged(task, from_uint8(images)))
            for name, task in setting.tasks.items()
        }
        rows = [as_pixels(setting.wanted(numbers))]
        rows += [depth_pixels(wanted["depth"]), label_pixels(wanted["segmentation"])]
        rows += [as_pixels(images)]
        rows += [depth_pixels(seen["depth"]), label_pixels(seen["segmentation"])]
        record = self.head("grid") | {
            "scale": single(drawn.meta["scales"]),
            "array": f"{about.sweep}/{about.method}/{about.predictor}",
            "labels": list(ROWS),
        }
        return Artifact({"record": record}, {"grid": np.stack(rows)})


@dataclass(frozen=True)
class Trajectory(Result):
    """Pictures: a guided sample from noise to image, and what is seen in it on the way.

    Attributes:
        samples: by experts; the first of them is drawn again, step by step.
        every: steps from one column to the next.
    """

    samples: WantedSamples
    every: int = 3

    def seconds(self) -> float:
        return 5.0

    def compute(self, load: Load) -> Artifact:
        setting, one = self.setup.load(), replace(self.samples, count=1)
        denoiser, guide = setting.denoiser().to(device()), one.guide(load)
        steps = list(trajectory(denoiser, [one.first_seed], guide, one.sampler))
        left, states = [step.timestep for step in steps], [step.x for step in steps]
        x_t, timesteps = torch.cat(states[: -1 : self.every]), torch.tensor(left[1 :: self.every])
        ends = torch.cat([states[-1].cpu(), from_uint8(setting.wanted(one.wanted))])
        noisy = torch.cat([x_t.cpu(), ends]).clamp(-1, 1)
        predicted = torch.cat([image_seen(denoiser, x_t, timesteps).cpu(), ends]).clamp(-1, 1)
        seen = {
            name: task.task.target(judged(task, predicted)) for name, task in setting.tasks.items()
        }
        rows = [as_pixels(to_uint8(noisy)), as_pixels(to_uint8(predicted))]
        rows += [depth_pixels(seen["depth"]), label_pixels(seen["segmentation"])]
        first = guide.parts[0]
        assert isinstance(first, LikelihoodGuide)
        bank = first.model
        assert isinstance(bank, ExpertBank)
        record = self.head("strip") | {
            "array": f"{self.about.sweep}/trajectory/{self.about.predictor}",
            "labels": ["noisy image", "predicted image", "its depth", "its labels"],
            "columns": [*(f"t = {t}" for t in timesteps.tolist()), "sample", "target"],
            "experts": [*bank.ranges.expert_of(timesteps).tolist(), None, None],
        }
        return Artifact({"record": record}, {"grid": np.stack(rows)})


def image_seen(denoiser: Denoiser, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """The images (N, C, H, W) that a denoiser sees in noisy ones at (N,) timesteps."""
    with torch.no_grad():
        epsilon = denoiser(x_t, timesteps.to(x_t.device)).epsilon
    signal = denoiser.schedule.signal(timesteps).to(x_t)[:, None, None, None]
    return (x_t - (1 - signal).sqrt() * epsilon) / signal.sqrt()


def as_pixels(images: Tensor) -> Bytes:
    """(N, H, W, 3) bytes of (N, 3, H, W) bytes."""
    return images.movedim(1, -1).numpy()


def depth_pixels(depth: Tensor) -> Bytes:
    """(N, H, W, 3) greys of (N, H, W) inverse depth, from each map's farthest to its nearest."""
    low, high = depth.amin((1, 2), keepdim=True), depth.amax((1, 2), keepdim=True)
    unit = (depth - low) / (high - low).clamp(min=1e-6)
    return to_uint8(2 * unit - 1)[..., None].expand(*depth.shape, 3).numpy()


def label_pixels(labels: Tensor) -> Bytes:
    """(N, H, W, 3) colours: label 0 dark grey, the others around the circle of hues."""
    hues = [hsv_to_rgb(k / 10, 0.75 if k % 2 else 0.45, 1.0) for k in range(10)]
    palette = np.array([(0.2, 0.2, 0.2), *hues])
    return (255 * palette[labels.numpy()]).astype(np.uint8)
