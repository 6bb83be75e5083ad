"""Settings: one scale of the whole experiment each; and budgets, how much of it is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablations import data, fashion, scenes
from ablations.errors import UserError
from ppap.checkpoints import CheckpointError, load_weights
from ppap.denoiser import Denoiser, freeze
from ppap.features import Features
from ppap.predictors import Predictor
from ppap.reference import ReferenceStatistics
from ppap.schedule import linear_schedule

__all__ = ["BUDGETS", "Budget", "EvaluatorExtractor", "Setting", "load_setting"]

WEIGHTS = Path(__file__).parent / "weights"


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
    """

    name: str
    classes: tuple[str, ...]
    predictors: tuple[str, ...]
    denoiser: Callable[[], Denoiser]
    predictor: Callable[[str], Predictor]
    untrained: Callable[[int], Predictor]
    extractor: Callable[[], EvaluatorExtractor]
    reference: Callable[[], ReferenceStatistics]
    labelled: Callable[[data.Split], tuple[Tensor, Tensor]]
    fingerprint: str


@lru_cache
def load_setting(name: str) -> Setting:
    """A setting by name.

    Raises:
        UserError: for an unknown name, or one whose weights are not there.
    """
    makers: dict[str, Callable[[], Setting]] = {"fashion": _fashion}
    if name not in makers:
        raise UserError(f"unknown setting {name!r}", f"choose from {', '.join(makers)}")
    return makers[name]()


def _fashion() -> Setting:
    folder = WEIGHTS / "fashion"

    def filled(module: Any, file: str) -> Any:
        try:
            load_weights(module, folder / f"{file}.safetensors")
        except CheckpointError as error:
            raise UserError(str(error), "restore ablations/weights, or run nox -s zoo") from error
        return freeze(module)

    @lru_cache
    def denoiser() -> Denoiser:
        network = filled(fashion.unet(), "denoiser")
        return Denoiser(network, linear_schedule(), fashion.SHAPE, target="v").eval()

    @lru_cache
    def extractor() -> EvaluatorExtractor:
        return EvaluatorExtractor(filled(fashion.Evaluator(), "evaluator"), "fashion-evaluator-64")

    @lru_cache
    def reference() -> ReferenceStatistics:
        try:
            return ReferenceStatistics.load(folder / "reference.safetensors")
        except (OSError, ValueError) as error:
            raise UserError(str(error), "restore ablations/weights, or run nox -s zoo") from error

    @lru_cache
    def labelled(split: data.Split) -> tuple[Tensor, Tensor]:
        found = data.load_fashion(split)
        return torch.from_numpy(found.images), torch.from_numpy(found.labels)

    try:
        fingerprint = json.loads((folder / "zoo.json").read_text())["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} holds no trained weights ({error})", "restore it, or run nox -s zoo"
        ) from error
    return Setting(
        "fashion",
        fashion.CLASSES,
        ("resnet", "vit"),
        denoiser,
        lambda name: filled(fashion.predictor(name), name),
        fashion.untrained,
        extractor,
        reference,
        labelled,
        fingerprint,
    )
