"""The embedded setting ``fashion``: Fashion-MNIST, 32x32 greyscale garments.

All networks are small enough for two CPU cores. The denoiser belongs to the ADM family; the
predictors are timm networks; the evaluator shares an architecture with neither.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ablations.settings import data
from ablations.settings.budget import Budget
from ablations.settings.setting import GuidedTask, SelectionRule, Setting, Split
from ablations.settings.shipped import ShippedWeights
from ablations.settings.small_networks import Evaluator, small_resnet, small_unet
from ppap.diffusion.denoiser import SpaceToDepth
from ppap.evaluation.metrics import correct
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask

__all__ = [
    "BUDGETS",
    "CLASSES",
    "SELECTION",
    "SHAPE",
    "evaluator",
    "labelled",
    "load",
    "predictor",
    "resnet",
    "unet",
    "untrained",
    "vit",
]

SHAPE = (1, 32, 32)
CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SELECTION = SelectionRule("accuracy", margin=0.02)
"""Of the scales whose accuracy is within two points of the best, that of the lowest FID."""
MEAN, STD = (0.219,), (0.332,)
"""Of the padded training images in [0, 1]."""
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
        trials=2,
        noisy_images=20,
        timed_images=8,
        resamples=20,
        expert_counts=(1, 5),
        units=2,
        curve_samples=10,
        curve_scales=(4.0, 16.0),
        doublings=1,
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
        units=3,
        curve_samples=200,
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


def unet() -> SpaceToDepth:
    """The unconditional ADM U-Net, on images folded to 16x16x4 (0.9 M parameters)."""
    network = small_unet(4, 4, 32, (1, 1, 2))
    return SpaceToDepth(network, factor=2)


def resnet(width: int = 16) -> ResNet:
    """The small ResNet of a width, with fresh weights."""
    return small_resnet(SHAPE[0], len(CLASSES), width)


def vit() -> VisionTransformer:
    """A four-layer vision transformer on 4x4 patches."""
    return VisionTransformer(
        img_size=32,
        patch_size=4,
        in_chans=1,
        num_classes=len(CLASSES),
        embed_dim=48,
        depth=4,
        num_heads=3,
    )


def predictor(name: str) -> Predictor:
    """An off-the-shelf predictor of the setting, without its weights: ``resnet`` or ``vit``."""
    return Predictor({"resnet": resnet, "vit": vit}[name](), MEAN, STD, name=f"fashion/{name}")


def untrained(width: int) -> Predictor:
    """The ResNet of another width, with fresh weights."""
    return Predictor(resnet(width), MEAN, STD, name=f"fashion/resnet-{width}")


def evaluator() -> Evaluator:
    """The independent judge of class and feature extractor, with fresh weights."""
    return Evaluator(SHAPE[0], len(CLASSES))


def labelled(split: Split) -> tuple[Tensor, Tensor]:
    """A split: images (N, 1, 32, 32) uint8 and their classes (N,) int64."""
    found = data.load_fashion(split)
    return torch.from_numpy(found.images), torch.from_numpy(found.labels)


def load() -> Setting:
    """The setting, with the weights that the repository ships.

    Raises:
        UserError: if there are none.
    """
    weights = ShippedWeights("fashion", SHAPE, unet, evaluator, "fashion-evaluator-64")

    guided = GuidedTask(
        task=ClassTask(),
        transferred=ClassTask,
        predictor="resnet",
        labelled=lru_cache(labelled),
        targets=lambda numbers: torch.tensor(numbers) % len(CLASSES),
        metrics={"accuracy": correct},
        selection=SELECTION,
        shown_at=0.9,
    )
    return Setting(
        name="fashion",
        classes=CLASSES,
        predictors=("resnet", "vit"),
        denoiser=lru_cache(weights.denoiser),
        predictor=lambda name: weights.fill(predictor(name), name),
        untrained=untrained,
        extractor=lru_cache(weights.make_extractor),
        reference=lru_cache(weights.reference),
        fingerprint=weights.fingerprint(),
        tasks={"class": guided},
    )
