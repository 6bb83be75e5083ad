"""Settings: one scale of the whole experiment each; and budgets, how much of it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablations.errors import UserError
from ablations.settings import data, fashion, scenes
from ablations.settings.public import PUBLIC, Models, digest_of
from ablations.settings.renderer import Rendered, draw_scenes, render
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.features import FeatureExtractor, Features
from ppap.evaluation.reference import ReferenceStatistics
from ppap.experts.adapters import Lora
from ppap.files.checkpoints import CheckpointError, load_weights
from ppap.files.images import Images
from ppap.predictors.predictor import Predictor
from ppap.tasks.tasks import ClassTask, DepthTask, SegmentationTask, Task

__all__ = [
    "BUDGETS",
    "REHEARSAL",
    "Budget",
    "EvaluatorExtractor",
    "GuidedTask",
    "Setting",
    "device",
    "load_setting",
]

REHEARSAL = "-rehearsal"
"""Ends the name of a public setting that is rehearsed on seeded weights."""
WEIGHTS = Path(__file__).parents[1] / "weights"
LABELLED_SCENES = 10_000
"""Of each split: they are rendered, ten seconds of one core, wherever they are needed."""
WANTED_SCENE = 2 * 10**9
"""Seed of the first scene that targets are taken from."""


@dataclass(frozen=True)
class Budget:
    """How much of an experiment is run.

    Attributes:
        seeds: training seeds per row; each trains its own experts and draws its own samples.
        samples: per seed and row.
        synthetic: images drawn for data-free transfer.
        steps: optimiser steps per model, all experts together.
        batch: images per step.
        scales: guidance scales among which a row's is chosen, where it is chosen.
        selection_samples: per scale and row, on seeds that no row is measured on.
        ancestral_samples: per seed and row, of the slow sampler DDPM-250.
        noisy_images: test images on which accuracy against noise is measured.
        timed_images: per batch of the throughput measurement.
        resamples: bootstrap replicates of an FID; those of a mean are five times as many.
        expert_counts: numbers of experts that are compared.
    """

    seeds: int
    samples: int
    synthetic: int
    steps: int
    batch: int
    scales: tuple[float, ...]
    selection_samples: int
    ancestral_samples: int = 200
    noisy_images: int = 1_000
    timed_images: int = 64
    resamples: int = 200
    expert_counts: tuple[int, ...] = (1, 2, 3, 5, 8, 10)

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.samples < 10 or self.steps < 1 or not self.scales:
            raise UserError(
                f"a budget needs at least 1 seed, 10 samples and 1 step, got {self.seeds}, "
                f"{self.samples} and {self.steps}",
                "raise --seeds, --samples or --steps",
            )


BUDGETS = {
    "smoke": Budget(
        seeds=1,
        samples=10,
        synthetic=64,
        steps=10,
        batch=16,
        scales=(16.0,),
        selection_samples=10,
        ancestral_samples=10,
        noisy_images=20,
        timed_images=8,
        resamples=20,
        expert_counts=(1, 5),
    ),
    "default": Budget(
        seeds=3,
        samples=100,
        synthetic=1_000,
        steps=400,
        batch=64,
        scales=(8.0, 16.0, 32.0),
        selection_samples=60,
        ancestral_samples=30,
        noisy_images=300,
        timed_images=32,
    ),
    "full": Budget(
        seeds=3,
        samples=500,
        synthetic=4_000,
        steps=2_000,
        batch=64,
        scales=(4.0, 8.0, 16.0, 32.0, 64.0),
        selection_samples=150,
    ),
    "paper": Budget(
        seeds=1,
        samples=10_000,
        synthetic=500_000,
        steps=300_000,
        batch=256,
        scales=(7.5,),
        selection_samples=500,
        ancestral_samples=10_000,
        resamples=20,
    ),
    "rehearsal": Budget(
        seeds=1,
        samples=10,
        synthetic=12,
        steps=6,
        batch=4,
        scales=(7.5,),
        selection_samples=10,
        ancestral_samples=10,
        noisy_images=4,
        timed_images=4,
        resamples=3,
        expert_counts=(1, 5),
    ),
}


class EvaluatorExtractor:
    """The setting's independent evaluator as a feature extractor."""

    def __init__(self, network: fashion.Evaluator | scenes.Evaluator, name: str) -> None:
        self.network = network
        self.name = name

    def __call__(self, images: Tensor) -> Features:
        """Features (N, D) and logits (N, K) of (N, C, H, W) images in [-1, 1]."""
        features = self.network.features(images)
        return Features(features, self.network.head(features), self.name)


@dataclass(frozen=True)
class GuidedTask:
    """One way of saying what an image is to show, in a setting whose images have several.

    Attributes:
        task: as it guides and is judged.
        predictor: name of the off-the-shelf one.
        evaluator: makes the independent one of another architecture.
        labelled: reads a labelled split: images (N, C, H, W) uint8 and targets (N, ...).
        wanted: (N, ...) targets by number, none of them of a labelled split; those of one
            number belong together in all tasks.
    """

    task: Task
    predictor: str
    evaluator: Callable[[], nn.Module]
    labelled: Callable[[data.Split], tuple[Tensor, Tensor]]
    wanted: Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Setting:
    """Everything an experiment at one scale needs.

    Attributes:
        name: as on the command line.
        classes: their names, in label order.
        predictors: names of the off-the-shelf predictors.
        denoiser: makes the unconditional diffusion model.
        predictor: makes an off-the-shelf predictor, by name.
        untrained: makes one of another width, to be trained on clean images.
        extractor: makes the independent evaluator.
        reference: reads the evaluator's statistics of the test set.
        labelled: reads a labelled split: images (N, C, H, W) uint8 and labels (N,).
        fingerprint: changes when any weight changes.
        tasks: what can be asked of an image, by name, where that is more than its class.
        wanted: images (N, C, H, W) uint8 that show what the tasks' targets of these numbers ask.
        judge: makes an independent classifier, where the evaluator's classes are others.
        noisy: makes noise-aware classifiers that were published, by the method they stand for.
        upsample: (samples (N, C, h, w), a seed each) -> images, where the guided denoiser is
            the first stage of a cascade.
        tuned: LoRA as published, and the learning rate of all adapters; None for those that
            suit the small networks trained here.
        mirrored: whether experts see every image mirrored, too.
        batch: images per network call when sampling; fewer where memory does not suffice.
        budget: how much is run unless another is asked for.
    """

    name: str
    classes: tuple[str, ...]
    predictors: tuple[str, ...]
    denoiser: Callable[[], Denoiser]
    predictor: Callable[[str], Predictor]
    untrained: Callable[[int], Predictor]
    extractor: Callable[[], FeatureExtractor]
    reference: Callable[[], ReferenceStatistics]
    labelled: Callable[[data.Split], tuple[Images, Tensor]]
    fingerprint: str
    tasks: Mapping[str, GuidedTask] = field(default_factory=dict)
    wanted: Callable[[Sequence[int]], Tensor] = lambda numbers: torch.empty(0)
    judge: Callable[[], nn.Module] | None = None
    noisy: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    upsample: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    tuned: tuple[Lora, float] | None = None
    mirrored: bool = False
    batch: int = 128
    budget: str = "default"


@lru_cache
def load_setting(name: str) -> Setting:
    """A setting by name.

    Raises:
        UserError: for an unknown name, or one whose weights are not there.
    """
    makers: dict[str, Callable[[], Setting]] = {"fashion": _fashion, "scenes": _scenes}
    for public in PUBLIC:
        makers[public] = partial(_public, public)
    if name.removesuffix(REHEARSAL) in PUBLIC and name.endswith(REHEARSAL):
        return _rehearsal(name)
    if name not in makers:
        raise UserError(f"unknown setting {name!r}", f"choose from {', '.join(makers)}")
    return makers[name]()


def _rehearsal(name: str) -> Setting:
    from ablations.settings.rehearsal import seeded_models

    public = name.removesuffix(REHEARSAL)
    return replace(_public(public, seeded_models(public)), name=name, budget="rehearsal")


def _public(name: str, models: Models | None = None) -> Setting:
    public, models = PUBLIC[name], models or Models.found()
    denoiser = lru_cache(lambda: public.load_denoiser(models))
    extractor = lru_cache(lambda: public.load_extractor(models, device()))

    def untrained(width: int) -> Predictor:
        raise UserError(f"{name} has no predictors of other widths", "choose --setting fashion")

    return Setting(
        name,
        public.classes(models),
        tuple(public.predictors),
        denoiser,
        lambda short: models.predictor(public.predictors[short]),
        untrained,
        extractor,
        lru_cache(lambda: public.load_reference(models, extractor())),
        lru_cache(lambda split: public.labelled(models, denoiser().shape[1], split)),
        digest_of(public.files(models)),
        judge=lru_cache(lambda: models.predictor(public.judge).to(device())),
        noisy={method: partial(public.load_noisy, models, method) for method in public.noisy},
        upsample=public.load_upsampler(models),
        tuned=(Lora(16, 8.0, public.lora_layers), 1e-4),
        mirrored=True,
        batch=public.batch,
        budget="paper",
    )


def device() -> torch.device:
    """Where networks run: ``$PPAP_DEVICE``, or a GPU if there is one."""
    named = os.environ.get("PPAP_DEVICE")
    return torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))


MEND = "restore ablations/weights, or run nox -s zoo"


@dataclass(frozen=True)
class _Shipped:
    """The weights of a setting, as the repository ships them.

    Attributes:
        name: of the setting.
        shape: of its images.
        unet: makes the denoiser's network.
        evaluator: makes the feature extractor's network.
        extractor: its name.
    """

    name: str
    shape: tuple[int, int, int]
    unet: Callable[[], nn.Module]
    evaluator: Callable[[], fashion.Evaluator | scenes.Evaluator]
    extractor: str

    @property
    def folder(self) -> Path:
        return WEIGHTS / self.name

    def filled(self, module: Any, file: str) -> Any:
        """A network with its weights, frozen."""
        try:
            load_weights(module, self.folder / f"{file}.safetensors")
        except CheckpointError as error:
            raise UserError(str(error), MEND) from error
        return freeze(module)

    def denoiser(self) -> Denoiser:
        network = self.filled(self.unet(), "denoiser")
        return Denoiser(network, linear_schedule(), self.shape, target="v").eval()

    def make_extractor(self) -> EvaluatorExtractor:
        return EvaluatorExtractor(self.filled(self.evaluator(), "evaluator"), self.extractor)

    def reference(self) -> ReferenceStatistics:
        try:
            return ReferenceStatistics.load(self.folder / "reference.safetensors")
        except (OSError, ValueError) as error:
            raise UserError(str(error), MEND) from error

    def fingerprint(self) -> str:
        try:
            return str(json.loads((self.folder / "zoo.json").read_text())["fingerprint"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder} holds no trained weights ({error})", "restore it, or run nox -s zoo"
            ) from error


def _fashion() -> Setting:
    shipped = _Shipped(
        "fashion", fashion.SHAPE, fashion.unet, fashion.Evaluator, "fashion-evaluator-64"
    )

    @lru_cache
    def labelled(split: data.Split) -> tuple[Tensor, Tensor]:
        found = data.load_fashion(split)
        return torch.from_numpy(found.images), torch.from_numpy(found.labels)

    return Setting(
        "fashion",
        fashion.CLASSES,
        ("resnet", "vit"),
        lru_cache(shipped.denoiser),
        lambda name: shipped.filled(fashion.predictor(name), name),
        fashion.untrained,
        lru_cache(shipped.make_extractor),
        lru_cache(shipped.reference),
        labelled,
        shipped.fingerprint(),
    )


def _scenes() -> Setting:
    shipped = _Shipped("scenes", scenes.SHAPE, scenes.unet, scenes.Evaluator, "scenes-evaluator-64")
    extractor = lru_cache(shipped.make_extractor)
    judges: dict[str, Callable[[], nn.Module]] = {
        "class": lambda: extractor().network,
        "depth": lambda: shipped.filled(scenes.DenseEvaluator(1), "depth-evaluator"),
        "segmentation": lambda: shipped.filled(
            scenes.DenseEvaluator(scenes.OUTPUTS["segmentation"]), "segmentation-evaluator"
        ),
    }
    tasks: dict[str, Task] = {
        "class": ClassTask(),
        "depth": DepthTask(),
        "segmentation": SegmentationTask(),
    }

    @lru_cache
    def rendered(split: data.Split) -> tuple[Tensor, dict[str, Tensor]]:
        found = data.load_scenes(split, LABELLED_SCENES)
        return torch.from_numpy(found.images), scenes.targets_of(found)

    @lru_cache(maxsize=4)
    def wanted_scenes(numbers: tuple[int, ...]) -> Rendered:
        return render(draw_scenes([WANTED_SCENE + n for n in numbers]))

    def labelled(task: str, split: data.Split) -> tuple[Tensor, Tensor]:
        images, targets = rendered(split)
        return images, targets[task]

    def wanted(task: str, numbers: Sequence[int]) -> Tensor:
        return scenes.targets_of(wanted_scenes(tuple(numbers)))[task]

    return Setting(
        "scenes",
        scenes.CLASSES,
        ("resnet",),
        lru_cache(shipped.denoiser),
        lambda name: shipped.filled(scenes.predictor(name), name),
        scenes.untrained,
        extractor,
        lru_cache(shipped.reference),
        partial(labelled, "class"),
        shipped.fingerprint(),
        {
            name: GuidedTask(
                task,
                "resnet" if name == "class" else name,
                lru_cache(judges[name]),
                partial(labelled, name),
                partial(wanted, name),
            )
            for name, task in tasks.items()
        },
        lambda numbers: torch.from_numpy(wanted_scenes(tuple(numbers)).images),
    )
