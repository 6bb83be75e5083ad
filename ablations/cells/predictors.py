"""Off-the-shelf predictors: the setting's by name, and classifiers of other widths trained here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ppap.diffusion.streams import derived_generator
from ppap.files.images import from_uint8
from ppap.predictors.predictor import Predictor

__all__ = [
    "Pretrained",
    "expert_bytes",
    "guide_seconds",
    "load_predictor",
    "predictor_name",
    "train_seconds",
]

# Measured on one core of the reference machine: seconds per image and gradient, and per training
# step of 64 images. They steer the estimate of the time left and nothing else.
GUIDE_SECONDS = {"resnet": 0.0007, "vit": 0.0015, "depth": 0.0010, "segmentation": 0.0010}
TRAIN_SECONDS = {"resnet": 0.035, "vit": 0.075, "depth": 0.060, "segmentation": 0.060}
OTHER_GUIDE_SECONDS, OTHER_TRAIN_SECONDS = 0.1, 3.0
"""Of public predictors."""
EXPERT_BYTES = {"resnet": 2**18, "vit": 2**18, "depth": 2**19, "segmentation": 2**19}
OTHER_EXPERT_BYTES = 2**27
"""Of an expert all of whose weights are trained; they serve the look at the disk before a run."""
REFERENCE_WIDTH = 16


@dataclass(frozen=True)
class Pretrained(Cell):
    """An off-the-shelf classifier of another width, trained here on clean labelled images."""

    setup: Setup
    width: int
    steps: int
    batch: int = 128
    learning_rate: float = 3e-3
    seed: int = 0

    def label(self) -> str:
        return f"clean predictor of width {self.width}"

    def seconds(self) -> float:
        return self.steps * self.batch / 64 * train_seconds(self)

    @property
    def relative_cost(self) -> float:
        """Cost relative to the setting's own ResNet."""
        return float((self.width / REFERENCE_WIDTH) ** 1.7)

    def blank(self) -> Predictor:
        """The predictor before training."""
        torch.manual_seed(self.seed)
        return self.setup.load().untrained(self.width)

    def predictor(self, artifact: Artifact) -> Predictor:
        """The trained predictor."""
        made = self.blank()
        state = {key: torch.from_numpy(value.copy()) for key, value in artifact.arrays.items()}
        made.network.load_state_dict(state)
        return made.eval()

    def compute(self, load: Load) -> Artifact:
        images, labels = self.setup.load().labelled("train")
        predictor = self.blank().train()
        optimiser = torch.optim.AdamW(predictor.parameters(), self.learning_rate, weight_decay=0.05)
        anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        for step in range(self.steps):
            generator = derived_generator(self.seed, step)
            chosen = torch.randint(len(images), (self.batch,), generator=generator)
            loss = F.cross_entropy(predictor(from_uint8(images[chosen])), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            anneal.step()
        state = {key: value.numpy() for key, value in predictor.network.state_dict().items()}
        return Artifact({}, state)


def load_predictor(setup: Setup, source: str | Pretrained, load: Load) -> Predictor:
    """One of the setting's predictors by name, or one that was trained here."""
    if isinstance(source, Pretrained):
        return source.predictor(load(source))
    return setup.load().predictor(source)


def predictor_name(source: str | Pretrained) -> str:
    """As in the tables."""
    return f"resnet-{source.width}" if isinstance(source, Pretrained) else source


def guide_seconds(source: str | Pretrained) -> float:
    """Expected time of one gradient of one image."""
    if isinstance(source, Pretrained):
        return GUIDE_SECONDS["resnet"] * source.relative_cost
    return GUIDE_SECONDS.get(source, OTHER_GUIDE_SECONDS)


def train_seconds(source: str | Pretrained) -> float:
    """Expected time of a training step of 64 images."""
    if isinstance(source, Pretrained):
        return TRAIN_SECONDS["resnet"] * source.relative_cost
    return TRAIN_SECONDS.get(source, OTHER_TRAIN_SECONDS)


def expert_bytes(source: str | Pretrained) -> int:
    """Expected size of an expert, all of whose weights are trained."""
    if isinstance(source, Pretrained):
        return round(EXPERT_BYTES["resnet"] * source.relative_cost)
    return EXPERT_BYTES.get(source, OTHER_EXPERT_BYTES)
