"""Models on noise as cells: their own accuracy on noisy test images, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ablations.cells.guidance import Model
from ablations.cells.setup import PER_MILLE, Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import device
from ppap.diffusion.guide import State
from ppap.files.images import from_uint8

__all__ = ["NOISE_LEVELS", "GradientQuality", "NoiseAccuracy"]

NOISE_LEVELS = tuple(range(20, 1000, 40))
GRADIENT_LEVELS = tuple(range(50, 1000, 100))


def noisy_test_images(
    setup: Setup, count: int, timesteps: tuple[int, ...]
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """For each timestep (its number, x_t, (N,) timesteps, (N,) labels); one noise for all."""
    setting = setup.load()
    images, labels = setting.tasks["class"].held_out(count)
    schedule = setting.denoiser().schedule
    x_0 = from_uint8(images)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    for timestep in timesteps:
        t = torch.full((len(x_0),), timestep * len(schedule) // PER_MILLE)
        yield timestep, schedule.add_noise(x_0, t, noise).to(device()), t, labels


@dataclass(frozen=True)
class NoiseAccuracy(Cell):
    """A model's own accuracy on noisy images of the test set, by timestep."""

    setup: Setup
    model: Model
    count: int
    timesteps: tuple[int, ...] = NOISE_LEVELS

    def label(self) -> str:
        return f"accuracy on noise {self.model.name}"

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()

    def seconds(self) -> float:
        return 0.3 + len(self.timesteps) * self.count * self.model.image_seconds() / 2

    def compute(self, load: Load) -> Artifact:
        predict = self.model.predict(self.setup, load)
        accuracy = []
        for _, x_t, t, labels in noisy_test_images(self.setup, self.count, self.timesteps):
            with torch.no_grad():
                parts = zip(x_t.split(500), t.split(500), strict=True)
                logits = torch.cat([predict(x, at) for x, at in parts])
            accuracy.append(float((logits.argmax(1).cpu() == labels).float().mean()))
        return Artifact({"accuracy": accuracy})


@dataclass(frozen=True)
class GradientQuality(Cell):
    """Cosine between the guidance gradients of a model and of a long-trained one.

    Taken per noisy test image towards its own label, averaged over images and timesteps.
    """

    setup: Setup
    model: Model
    reference: Model
    count: int
    timesteps: tuple[int, ...] = GRADIENT_LEVELS

    def label(self) -> str:
        return f"gradients {self.model.name}"

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()
        yield from self.reference.inputs()

    def seconds(self) -> float:
        return 0.3 + 2 * len(self.timesteps) * self.count * self.model.image_seconds()

    def compute(self, load: Load) -> Artifact:
        models = (self.model, self.reference)
        _, labels = self.setup.load().tasks["class"].held_out(self.count)
        guides = [model.guide(self.setup, load, labels, 1.0) for model in models]
        cosines = []
        for _, x_t, t, _ in noisy_test_images(self.setup, self.count, self.timesteps):
            ours, theirs = (guide(State(x_t, t)).flatten(1) for guide in guides)
            cosines.append(torch.cosine_similarity(ours, theirs).cpu().numpy())
        per_image = np.stack(cosines).mean(0)
        return Artifact({"cosine": float(per_image.mean())}, {"cosines": per_image})
