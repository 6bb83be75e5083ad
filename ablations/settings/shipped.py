"""Weights of the embedded settings, as the repository ships them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ablations.errors import UserError
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.features import Features
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.checkpoints import CheckpointError, load_weights

__all__ = ["WEIGHTS", "EvaluatorExtractor", "EvaluatorNetwork", "ShippedWeights"]

WEIGHTS = Path(__file__).parents[1] / "weights"
MEND = "restore ablations/weights, or run nox -s zoo"


class EvaluatorNetwork(Protocol):
    """An independent classifier whose last hidden layer gives the features of FID."""

    head: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        """(N, D) features of (N, C, H, W) images in [-1, 1]."""
        ...


class EvaluatorExtractor:
    """The setting's independent evaluator as a feature extractor."""

    def __init__(self, network: EvaluatorNetwork, name: str) -> None:
        self.network = network
        self.name = name

    def __call__(self, images: Tensor) -> Features:
        """Features (N, D) and logits (N, K) of (N, C, H, W) images in [-1, 1]."""
        features = self.network.features(images)
        return Features(features, self.network.head(features), self.name)


@dataclass(frozen=True)
class ShippedWeights:
    """The weights of a setting and the networks that they fill.

    Attributes:
        name: of the setting.
        shape: of its images, (C, H, W).
        unet: makes the denoiser's network.
        evaluator: makes the feature extractor's network.
        extractor: its name.
    """

    name: str
    shape: tuple[int, int, int]
    unet: Callable[[], nn.Module]
    evaluator: Callable[[], EvaluatorNetwork]
    extractor: str

    @property
    def folder(self) -> Path:
        """Where they are."""
        return WEIGHTS / self.name

    def fill(self, module: Any, file: str) -> Any:
        """Load a network's weights and freeze it.

        Raises:
            UserError: if the file is absent, damaged or of another network.
        """
        try:
            load_weights(module, self.folder / f"{file}.safetensors")
        except CheckpointError as error:
            raise UserError(str(error), MEND) from error
        return freeze(module)

    def denoiser(self) -> Denoiser:
        """The unconditional diffusion model, which predicts the velocity."""
        network = self.fill(self.unet(), "denoiser")
        return Denoiser(network, linear_schedule(), self.shape, target="v").eval()

    def make_extractor(self) -> EvaluatorExtractor:
        """The independent evaluator."""
        return EvaluatorExtractor(self.fill(self.evaluator(), "evaluator"), self.extractor)

    def reference(self) -> ReferenceStatistics:
        """The evaluator's statistics of the test set."""
        try:
            return ReferenceStatistics.load(self.folder / "reference.safetensors")
        except (OSError, ValueError) as error:
            raise UserError(str(error), MEND) from error

    def fingerprint(self) -> str:
        """Of all the weights, as the training wrote it down."""
        try:
            return str(json.loads((self.folder / "zoo.json").read_text())["fingerprint"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder} holds no trained weights ({error})", "restore it, or run nox -s zoo"
            ) from error
