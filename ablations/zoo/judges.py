"""Trains judges, encoders and predictors: ``python -m ablations.zoo.judges --work FOLDER``.

What is trained is written to ``FOLDER/weights/judges/NAME.safetensors``, with what it reaches on
the test images in ``judges.json``. A GPU takes a minute or two for all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.settings import data, fashion, scenes
from ablations.settings.judges import Autoencoder, ResidualJudge
from ablations.zoo.denoisers import device_name
from ablations.zoo.training import Recipe, in_batches, train
from ppap.compute.precision import Precision, autocast, choose_precision
from ppap.files.checkpoints import save_weights
from ppap.files.images import from_uint8

__all__ = ["NETWORKS", "main", "varied"]

HIDDEN = 10
"""Side of the square that is hidden of an image, in pixels (arXiv 1708.04552)."""
Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


def varied(images: Tensor, generator: torch.Generator, mirrored: bool, hidden: int) -> Tensor:
    """Each image mirrored or not, with a square hidden, and all shifted by up to 2 pixels.

    Args:
        images: (B, C, H, W) in [-1, 1].
        generator: of the draws, on the images' device.
        mirrored: whether half of them are.
        hidden: side of the square, 0 for none.

    Returns:
        (B, C, H, W).
    """
    count, _, height, width = images.shape
    draws = torch.rand(5, count, generator=generator, device=images.device)
    down, right = (draws[0, :2] * 5).long().sub(2).tolist()
    images = images.roll((down, right), dims=(2, 3))
    if mirrored:
        images = torch.where(draws[1, :, None, None, None] < 0.5, images.flip(3), images)
    if hidden:
        rows = torch.arange(height, device=images.device) - (draws[2] * height).floor()[:, None]
        columns = torch.arange(width, device=images.device) - (draws[3] * width).floor()[:, None]
        inside = (2 * rows).abs().le(hidden)[:, None, :, None]
        inside = inside & (2 * columns).abs().le(hidden)[:, None, None, :]
        images = images.masked_fill(inside, -1.0)
    return images


@dataclass(frozen=True)
class Trained:
    """A network that is trained here.

    Attributes:
        setting: whose images it sees.
        make: it with fresh weights, from a seed.
        recipe: of its training.
        mirrored: whether it sees mirrored images, too.
        hidden: side of the square that is hidden.
        smoothing: of labels; None for an autoencoder, which sees none.
    """

    setting: str
    make: Callable[[], nn.Module]
    recipe: Recipe
    mirrored: bool = True
    hidden: int = HIDDEN
    smoothing: float | None = 0.05


def _judge(seed: int) -> Trained:
    recipe = Recipe(3_600, 512, 4e-3, weight_decay=0.1, average=0.998, seed=seed)
    return Trained("fashion", lambda: ResidualJudge(1, len(fashion.CLASSES)), recipe)


NETWORKS: dict[str, Trained] = {
    "judge-0": _judge(10),
    "judge-1": _judge(11),
    "judge-2": _judge(12),
    "vit": Trained(
        "fashion",
        fashion.vit,
        Recipe(8_000, 512, 3e-3, weight_decay=0.05, average=0.998, seed=3),
        hidden=0,
    ),
    "resnet": Trained(
        "fashion",
        fashion.resnet,
        Recipe(4_000, 256, 4e-3, weight_decay=0.05, average=0.998, seed=2),
        hidden=0,
    ),
    "autoencoder": Trained(
        "fashion",
        lambda: Autoencoder(1),
        Recipe(4_000, 512, 2e-3, average=0.998, seed=20),
        mirrored=False,
        hidden=0,
        smoothing=None,
    ),
    "scenes-autoencoder": Trained(
        "scenes",
        lambda: Autoencoder(3),
        Recipe(4_000, 512, 2e-3, average=0.998, seed=21),
        hidden=0,
        smoothing=None,
    ),
}


def loss_of(trained: Trained, images: Tensor, labels: Tensor, precision: Precision) -> Loss:
    """Of a step on images (N, C, H, W) uint8 and (N,) labels, where both lie."""
    on = images.device

    def loss(network: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.Generator(on).manual_seed(generator.initial_seed())
        chosen = chosen.to(on)
        x = varied(from_uint8(images[chosen]), draws, trained.mirrored, trained.hidden)
        with autocast(precision, on):
            found = network(x.contiguous(memory_format=torch.channels_last)).float()
        if trained.smoothing is None:
            return F.mse_loss(found, x)
        return F.cross_entropy(found, labels[chosen], label_smoothing=trained.smoothing)

    return loss


def labelled(setting: str, split: data.Split) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) uint8 images and (N,) labels of a setting."""
    if setting == "fashion":
        return fashion.labelled(split)
    images, targets = scenes.labelled("class", split)
    return images[:], targets


def figures(network: nn.Module, trained: Trained, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """What a network reaches on the test images."""
    images, labels = test
    found = in_batches(network, images)
    if trained.smoothing is None:
        return {"test_error": round(float(F.mse_loss(found, images)), 5)}
    return {"test_accuracy": round(float((found.argmax(1) == labels).float().mean()), 4)}


def main(arguments: list[str] | None = None) -> None:
    """Train networks by name, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.zoo.judges", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--work", type=Path, default=Path(".ppap/zoo"))
    parser.add_argument("--steps", type=int, help="of every training")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    target = options.work / "weights" / "judges"
    for folder in (options.work / "judges", target):
        folder.mkdir(parents=True, exist_ok=True)
    precision, facts = choose_precision("auto", options.device), {}
    for name in options.names or NETWORKS:
        facts[name] = _train_one(name, options, target, precision)
        print(name, facts[name], flush=True)
        (target / "judges.json").write_text(json.dumps(facts, indent=2) + "\n")


def _train_one(name: str, options: Any, target: Path, precision: Precision) -> dict[str, Any]:
    trained, device = NETWORKS[name], options.device
    recipe = replace(trained.recipe, steps=options.steps or trained.recipe.steps)
    images, labels = (part.to(device) for part in labelled(trained.setting, "train"))
    began = time.monotonic()

    def make() -> nn.Module:
        return trained.make().to(device, memory_format=torch.channels_last)

    loss = loss_of(trained, images, labels, precision)
    network = train(name, make, loss, len(images), recipe, options.work / "judges")
    seconds = time.monotonic() - began
    save_weights(network.state_dict(), target / f"{name}.safetensors", torch.float16)
    test, answers = labelled(trained.setting, "test")
    about = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seconds": round(seconds),
        "trained_on": device_name(device),
        "precision": precision,
    }
    return about | figures(network, trained, (from_uint8(test).to(device), answers.to(device)))


if __name__ == "__main__":
    main()
