"""The weights of the setting ``fashion``: half of the 45 minutes are the denoiser's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.settings import fashion
from ablations.settings.shipped import EvaluatorExtractor
from ablations.zoo.training import (
    Recipe,
    card_rows,
    denoising_loss,
    drawn_quality,
    fingerprint,
    in_batches,
    train,
)
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.checkpoints import load_weights, save_weights
from ppap.files.images import from_uint8

__all__ = ["RECIPES", "train_all"]

RECIPES = {
    "denoiser": Recipe(7_500, 32, 1e-3, average=0.999, seed=0),
    "resnet": Recipe(2_400, 128, 3e-3, weight_decay=0.05, seed=2),
    "vit": Recipe(4_000, 96, 2e-3, weight_decay=0.05, seed=3),
    "evaluator": Recipe(1_500, 128, 3e-3, weight_decay=0.05, seed=1),
}
CARD = """\
# Weights of the setting `fashion`

Trained on the 60 000 training images of Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT
licence), padded to 32x32, by `nox -s zoo`; float16. The classifiers saw clean images only.
Figures are of the weights as shipped.

| file | network | parameters | steps x batch | reached |
|---|---|---|---|---|
{rows}

`reference.safetensors`: the evaluator's features of the 10 000 test images with their mean and
covariance, for FID, KID, precision and recall.

`zoo.json` holds the same figures and a fingerprint that every cached result depends on.
"""
ABOUT = {
    "denoiser": "unconditional ADM U-Net on images folded to 16x16x4, linear schedule",
    "resnet": "timm ResNet, four stages of one basic block; off-the-shelf predictor",
    "vit": "timm vision transformer, 4x4 patches, width 48, depth 4; off-the-shelf predictor",
    "evaluator": "plain convolutional network; independent judge and feature extractor",
}


def classification_loss(
    images: Tensor, labels: Tensor
) -> Callable[[nn.Module, Tensor, torch.Generator], Tensor]:
    """Cross-entropy on clean images (N, 1, 32, 32) uint8, each shifted by up to 2 pixels."""

    def loss(network: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
        shifted = images[chosen].roll((down, right), dims=(2, 3))
        return F.cross_entropy(network(from_uint8(shifted)), labels[chosen])

    return loss


def networks() -> dict[str, Callable[[], nn.Module]]:
    """What is trained, by the name of its weights file."""
    return {
        "denoiser": fashion.unet,
        "resnet": lambda: fashion.predictor("resnet"),
        "vit": lambda: fashion.predictor("vit"),
        "evaluator": fashion.evaluator,
    }


def train_all(work: Path, target: Path) -> None:
    """Train what the work folder does not hold finished, then write weights and model card."""
    images, labels = fashion.labelled("train")
    for name, make in networks().items():
        loss = denoising_loss(images) if name == "denoiser" else classification_loss(images, labels)
        trained = train(name, make, loss, len(images), RECIPES[name], work)
        save_weights(trained.state_dict(), target / f"{name}.safetensors", torch.float16)
    facts = measure(target)
    (target / "zoo.json").write_text(json.dumps(facts, indent=2) + "\n")
    (target / "MODEL_CARD.md").write_text(CARD.format(rows=card_rows(facts, ABOUT)))


def measure(target: Path) -> dict[str, Any]:
    """Write the reference statistics, and measure the weights as they will be loaded."""
    test, labels = fashion.labelled("test")
    images = from_uint8(test)

    def loaded(name: str) -> Any:
        network = networks()[name]()
        load_weights(network, target / f"{name}.safetensors")
        return freeze(network)

    extractor = EvaluatorExtractor(loaded("evaluator"), "fashion-evaluator-64")
    ReferenceStatistics.of(extractor, images).save(target / "reference.safetensors", half=True)
    facts: dict[str, Any] = {"setting": "fashion", "models": {}}
    for name in networks():
        network = loaded(name)
        entry: dict[str, Any] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "steps": RECIPES[name].steps,
            "batch": RECIPES[name].batch,
        }
        if name == "denoiser":
            denoiser = Denoiser(network, linear_schedule(), fashion.SHAPE, "v").eval()
            reference = ReferenceStatistics.load(target / "reference.safetensors")
            entry |= drawn_quality(denoiser, extractor, reference)
        else:
            correct = in_batches(network, images).argmax(1) == labels
            entry["test_accuracy"] = round(float(correct.float().mean()), 4)
        facts["models"][name] = entry
    return facts | {"fingerprint": fingerprint(target, networks())}
