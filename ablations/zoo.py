"""Trains the weights that the embedded setting ships: ``nox -s zoo``.

Every training has fixed seeds and is resumable: it leaves a checkpoint every minute in the
work folder and continues from it, with the same random draws as if never interrupted. The
weights are written as float16 safetensors, with a model card that states what they reach.
Cost on 2 CPU cores: about 45 minutes in all, half of it for the denoiser.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ablations import fashion
from ablations.data import load_fashion
from ablations.errors import UserError
from ablations.settings import WEIGHTS, EvaluatorExtractor
from ppap.checkpoints import load_state, load_weights, save_weights
from ppap.denoiser import Denoiser, freeze
from ppap.features import extract
from ppap.images import from_uint8
from ppap.metrics import image_quality
from ppap.reference import ReferenceStatistics
from ppap.samplers import DDIM, sample
from ppap.schedule import linear_schedule

__all__ = ["RECIPES", "Recipe", "main", "minibatches", "train"]

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        steps: optimiser steps.
        batch: images per step.
        learning_rate: peak of a linear warm-up over 2 % of the steps and a cosine decay.
        weight_decay: AdamW's.
        average: decay of the exponential moving average of the weights; 0 for none.
        seed: of the initial weights and of the order of the images; noise is drawn by step.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.0
    average: float = 0.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        warm = max(1, self.steps // 50)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / (self.steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


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
FID_SAMPLES, FID_SEED = 2_000, 4 * 10**9


def minibatches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless index batches: each image once per epoch, the order set by (seed, epoch)."""
    epoch = 0
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            left = torch.cat([left, torch.randperm(count, generator=generator)])
            epoch += 1
        yield left[:batch]
        left = left[batch:]


def train(
    name: str,
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    count: int,
    recipe: Recipe,
    folder: Path,
) -> nn.Module:
    """Train a network, or continue where an interrupted training left off.

    Args:
        name: names the checkpoint ``<folder>/<name>.training.pt``.
        make: builds the network with fresh weights.
        loss: (network, (B,) indices of the images of this step, generator) -> scalar.
        count: number of training images.
        recipe: steps, batch, rates and seed.
        folder: where the checkpoint lives.

    Returns:
        The trained (averaged, if the recipe says so) network in evaluation mode.
    """
    torch.manual_seed(recipe.seed)
    network = make()
    averaged = make()
    averaged.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    path = folder / f"{name}.training.pt"
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["network"])
        averaged.load_state_dict(saved["averaged"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    network.train()
    batches = minibatches(count, recipe.batch, recipe.seed)
    for _ in range(first):
        next(batches)
    saved_at, running = time.monotonic(), 0.0
    progress = tqdm(range(first, recipe.steps), desc=name, initial=first, total=recipe.steps)
    for step in progress:
        generator = torch.Generator().manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        value = loss(network, next(batches), generator)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        _average(averaged, network, min(recipe.average, step / (step + 10)))
        latest = float(value.detach())
        running = latest if step == first else 0.98 * running + 0.02 * latest
        if step % 50 == 0:
            progress.set_postfix(loss=f"{running:.4f}")
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS or step + 1 == recipe.steps:
            state = {
                "network": network.state_dict(),
                "averaged": averaged.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
            }
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            saved_at = time.monotonic()
    return averaged.eval()


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of parameters; buffers are copied."""
    old, new = list(averaged.parameters()), list(network.parameters())
    torch._foreach_lerp_(old, new, 1 - decay)
    for kept, current in zip(averaged.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def denoising_loss(images: Tensor) -> Callable[[nn.Module, Tensor, torch.Generator], Tensor]:
    """Velocity-prediction error on images: (N, C, H, W) uint8 (arXiv 2202.00512, appendix D).

    Velocity and not noise: a network this narrow cannot pass its noisy input through exactly,
    and at high noise the predicted image would carry that error a hundredfold.
    """
    schedule = linear_schedule()

    def loss(network: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        x_0 = from_uint8(images[chosen])
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(len(schedule), (len(x_0),), generator=generator)
        level = schedule.signal(t)[:, None, None, None]
        velocity = level.sqrt() * noise - (1 - level).sqrt() * x_0
        return F.mse_loss(network(schedule.add_noise(x_0, t, noise), t), velocity)

    return loss


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
        "evaluator": fashion.Evaluator,
    }


def train_all(work: Path, target: Path) -> None:
    """Train what the work folder does not hold finished, then write weights and model card."""
    found = load_fashion("train")
    images, labels = torch.from_numpy(found.images), torch.from_numpy(found.labels)
    for name, make in networks().items():
        loss = denoising_loss(images) if name == "denoiser" else classification_loss(images, labels)
        trained = train(name, make, loss, len(images), RECIPES[name], work)
        save_weights(trained.state_dict(), target / f"{name}.safetensors", torch.float16)
    facts = measure(target)
    (target / "zoo.json").write_text(json.dumps(facts, indent=2) + "\n")
    (target / "MODEL_CARD.md").write_text(model_card(facts))


def measure(target: Path) -> dict[str, Any]:
    """Write the reference statistics, and measure the weights as they will be loaded."""
    test = load_fashion("test")
    images, labels = from_uint8(torch.from_numpy(test.images)), torch.from_numpy(test.labels)

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
            drawn = sample(denoiser, DDIM(25), range(FID_SEED, FID_SEED + FID_SAMPLES))
            reference = ReferenceStatistics.load(target / "reference.safetensors")
            quality = image_quality(extract(extractor, drawn), reference)
            entry |= {"fid": round(quality.fid, 3), "fid_samples": FID_SAMPLES}
        else:
            with torch.no_grad():
                logits = torch.cat([network(part) for part in images.split(500)])
            entry["test_accuracy"] = round(float((logits.argmax(1) == labels).float().mean()), 4)
        facts["models"][name] = entry
    digest = hashlib.sha256()
    for name in networks():
        for key, value in sorted(load_state(target / f"{name}.safetensors").items()):
            digest.update(f"{name}.{key}".encode() + value.numpy().tobytes())
    return facts | {"fingerprint": digest.hexdigest()[:16]}


def model_card(facts: dict[str, Any]) -> str:
    """Markdown that says what the weights are and what they reach."""
    about = {
        "denoiser": "unconditional ADM U-Net on images folded to 16x16x4, linear schedule",
        "resnet": "timm ResNet, four stages of one basic block; off-the-shelf predictor",
        "vit": "timm vision transformer, 4x4 patches, width 48, depth 4; off-the-shelf predictor",
        "evaluator": "plain convolutional network; independent judge and feature extractor",
    }
    rows = [
        f"| `{name}.safetensors` | {about[name]} | {entry['parameters']:,} | "
        f"{entry['steps']:,} x {entry['batch']} | {_reached(entry)} |"
        for name, entry in facts["models"].items()
    ]
    return CARD.format(rows="\n".join(rows))


def _reached(entry: dict[str, Any]) -> str:
    if "test_accuracy" in entry:
        return f"test accuracy {100 * entry['test_accuracy']:.2f} %"
    return (
        f"FID {entry['fid']:.2f}: {entry['fid_samples']} samples of DDIM-25 against the test set "
        "on the evaluator's features"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ablations.zoo", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".ppap/zoo"), help="for checkpoints")
    parser.add_argument("--target", type=Path, default=WEIGHTS / "fashion", help="for the weights")
    options = parser.parse_args(arguments)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        train_all(options.work, options.target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
