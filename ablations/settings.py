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

from ablations import data, fashion
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
        scales: guidance scales among which each row's is chosen.
        selection_samples: per scale and row, on seeds that no row is measured on.
        noisy_images: test images on which accuracy against noise is measured.
        timed_images: per batch of the throughput measurement.
    """

    seeds: int
    samples: int
    synthetic: int
    steps: int
    batch: int
    scales: tuple[float, ...]
    selection_samples: int
    noisy_images: int = 1_000
    timed_images: int = 64

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.samples < 10 or self.steps < 1 or not self.scales:
            raise UserError(
                f"a budget needs at least 1 seed, 10 samples and 1 step, got {self.seeds}, "
                f"{self.samples} and {self.steps}",
                "raise --seeds, --samples or --steps",
            )


BUDGETS = {
    "smoke": Budget(1, 40, 100, 20, 32, (16.0,), 20, noisy_images=100, timed_images=8),
    "default": Budget(1, 200, 1_000, 800, 64, (8.0, 16.0), 100),
    "full": Budget(3, 500, 4_000, 2_000, 64, (4.0, 8.0, 16.0, 32.0), 150),
}


class EvaluatorExtractor:
    """The setting's independent evaluator as a feature extractor."""

    def __init__(self, network: fashion.Evaluator, name: str) -> None:
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
        extractor,
        reference,
        labelled,
        fingerprint,
    )
