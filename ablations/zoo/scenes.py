"""The weights of the setting ``scenes``: about 80 minutes of one core, 40 the denoiser's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablations.settings import scenes
from ablations.settings.data import TRAINING_SCENES, load_scenes
from ablations.settings.scene_targets import targets_of
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
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask

__all__ = ["RECIPES", "networks", "train_all"]

RECIPES = {
    "denoiser": Recipe(20_000, 32, 1e-3, average=0.9995, seed=0),
    "resnet": Recipe(2_000, 64, 3e-3, weight_decay=0.05, seed=2),
    "depth": Recipe(2_000, 32, 3e-3, weight_decay=0.05, seed=3),
    "segmentation": Recipe(2_500, 32, 3e-3, weight_decay=0.05, seed=4),
    "evaluator": Recipe(1_500, 64, 3e-3, weight_decay=0.05, seed=1),
    "depth-evaluator": Recipe(2_000, 32, 2e-3, weight_decay=0.05, seed=5),
    "segmentation-evaluator": Recipe(2_500, 32, 2e-3, weight_decay=0.05, seed=6),
}
TASKS: dict[str, Task] = {
    "class": ClassTask(),
    "depth": DepthTask(aligned=False),
    "segmentation": SegmentationTask(),
}
CARD = """\
# Weights of the setting `scenes`

Trained on {count} scenes of one to three solids, 32x32 RGB, which `ablations/settings/rendering`
draws, by `nox -s zoo -- scenes`; float16. Every predictor and evaluator saw clean images only.
Figures are of the weights as shipped, on 10 000 scenes that nothing was trained on.

| file | network | parameters | steps x batch | reached |
|---|---|---|---|---|
{rows}

`reference.safetensors`: the evaluator's features of the 10 000 test images with their mean and
covariance, for FID, KID, precision and recall.

`zoo.json` holds the same figures and a fingerprint that every cached result depends on.
"""
ABOUT = {
    "denoiser": "unconditional ADM U-Net on images folded to 16x16x12, linear schedule",
    "resnet": "timm ResNet, four stages of one basic block; off-the-shelf classifier",
    "depth": "convolutional encoder-decoder; off-the-shelf estimator of inverse depth",
    "segmentation": "convolutional encoder-decoder; off-the-shelf segmenter, 11 labels",
    "evaluator": "plain convolutional network; independent judge and feature extractor",
    "depth-evaluator": "residual dilated convolutions; independent judge of depth",
    "segmentation-evaluator": "residual dilated convolutions; independent judge of segmentation",
}


def networks() -> dict[str, Callable[[], nn.Module]]:
    """What is trained, by the name of its weights file."""
    return {
        "denoiser": scenes.unet,
        "resnet": lambda: scenes.predictor("resnet"),
        "depth": lambda: scenes.predictor("depth"),
        "segmentation": lambda: scenes.predictor("segmentation"),
        "evaluator": scenes.evaluator,
        "depth-evaluator": lambda: scenes.DenseEvaluator(scenes.OUTPUTS["depth"]),
        "segmentation-evaluator": lambda: scenes.DenseEvaluator(scenes.OUTPUTS["segmentation"]),
    }


def task_of(name: str) -> str:
    """The task of a predictor or evaluator."""
    task = name.removesuffix("-evaluator")
    return task if task in TASKS else "class"


def supervised_loss(
    images: Tensor, targets: Tensor, task: Task
) -> Callable[[nn.Module, Tensor, torch.Generator], Tensor]:
    """A task's loss on clean images (N, 3, 32, 32) uint8, half of the batches mirrored."""

    def loss(network: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        x, wanted = from_uint8(images[chosen]), targets[chosen]
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(3)
            wanted = wanted.flip(2) if wanted.ndim == 3 else wanted
        return task.supervised_loss(network(x), wanted)

    return loss


def train_all(work: Path, target: Path) -> None:
    """Train what the work folder does not hold finished, then write weights and model card."""
    rendered = load_scenes("train", TRAINING_SCENES)
    images, targets = torch.from_numpy(rendered.images), targets_of(rendered)
    for name, make in networks().items():
        loss = denoising_loss(images)
        if name != "denoiser":
            loss = supervised_loss(images, targets[task_of(name)], TASKS[task_of(name)])
        trained = train(name, make, loss, len(images), RECIPES[name], work)
        save_weights(trained.state_dict(), target / f"{name}.safetensors", torch.float16)
    facts = measure(target)
    (target / "zoo.json").write_text(json.dumps(facts, indent=2) + "\n")
    rows = card_rows(facts, ABOUT)
    (target / "MODEL_CARD.md").write_text(CARD.format(count=len(images), rows=rows))


def measure(target: Path) -> dict[str, Any]:
    """Write the reference statistics, and measure the weights as they will be loaded."""
    rendered = load_scenes("test")
    images, targets = from_uint8(torch.from_numpy(rendered.images)), targets_of(rendered)

    def loaded(name: str) -> Any:
        network = networks()[name]()
        load_weights(network, target / f"{name}.safetensors")
        return freeze(network)

    extractor = EvaluatorExtractor(loaded("evaluator"), "scenes-evaluator-64")
    ReferenceStatistics.of(extractor, images).save(target / "reference.safetensors", half=True)
    facts: dict[str, Any] = {"setting": "scenes", "models": {}}
    for name in networks():
        network = loaded(name)
        entry: dict[str, Any] = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "steps": RECIPES[name].steps,
            "batch": RECIPES[name].batch,
        }
        if name == "denoiser":
            denoiser = Denoiser(network, linear_schedule(), scenes.SHAPE, "v").eval()
            reference = ReferenceStatistics.load(target / "reference.safetensors")
            entry |= drawn_quality(denoiser, extractor, reference)
        else:
            entry |= _scores(task_of(name), in_batches(network, images), targets)
        facts["models"][name] = entry
    return facts | {"fingerprint": fingerprint(target, networks())}


def _scores(task: str, predictions: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
    judge = DepthTask() if task == "depth" else TASKS[task]
    score = round(float(judge.score(predictions, targets[task]).mean()), 4)
    if task == "depth":
        errors = judge.errors(predictions, targets[task])
        return {"test_rmse": round(float(errors.mean()), 4), "test_delta_1": score}
    return {"test_accuracy" if task == "class" else "test_mean_iou": score}
