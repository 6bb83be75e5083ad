"""Trainings that the zoo shares: resumable, with fixed draws, and what is said of the results."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import linear_schedule
from ppap.evaluation.features import FeatureExtractor, extract
from ppap.evaluation.metrics import image_quality
from ppap.evaluation.reference import ReferenceStatistics
from ppap.fast.sampling import sample
from ppap.files.checkpoints import load_state
from ppap.files.images import from_uint8

__all__ = [
    "Recipe",
    "card_rows",
    "denoising_loss",
    "drawn_quality",
    "fingerprint",
    "in_batches",
    "minibatches",
    "train",
]

CHECKPOINT_SECONDS = 60.0
FID_SAMPLES, FID_SEED = 2_000, 4 * 10**9


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
    saved_at, running = time.monotonic(), None
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
        latest = value.detach()  # read now and then alone: a GPU need not wait
        running = latest if running is None else running.lerp(latest, 0.02)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{float(running):.4f}")
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


def drawn_quality(
    denoiser: Denoiser, extractor: FeatureExtractor, reference: ReferenceStatistics
) -> dict[str, float]:
    """FID of unguided samples, and on how many."""
    drawn = sample(denoiser, range(FID_SEED, FID_SEED + FID_SAMPLES))
    quality = image_quality(extract(extractor, drawn), reference)
    return {"fid": round(quality.fid, 3), "fid_samples": FID_SAMPLES}


def in_batches(network: nn.Module, images: Tensor) -> Tensor:
    """Predictions for (N, C, H, W) images in [-1, 1], without gradient."""
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(500)])


def fingerprint(target: Path, names: Iterable[str]) -> str:
    """Digest of all weights in a folder, by which cached results know theirs."""
    digest = hashlib.sha256()
    for name in names:
        for key, value in sorted(load_state(target / f"{name}.safetensors").items()):
            digest.update(f"{name}.{key}".encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


def card_rows(facts: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Markdown rows of a model card."""
    return "\n".join(
        f"| `{name}.safetensors` | {about[name]} | {entry['parameters']:,} | "
        f"{entry['steps']:,} x {entry['batch']} | {_reached(entry)} |"
        for name, entry in facts["models"].items()
    )


def _reached(entry: Mapping[str, Any]) -> str:
    if "fid" in entry:
        return (
            f"FID {entry['fid']:.2f}: {entry['fid_samples']} samples of DDIM-25 against the test "
            "set on the evaluator's features"
        )
    if "test_accuracy" in entry:
        return f"test accuracy {100 * entry['test_accuracy']:.2f} %"
    if "test_mean_iou" in entry:
        return f"test mean IoU {100 * entry['test_mean_iou']:.2f} % (mean over images)"
    return (
        f"test RMSE {entry['test_rmse']:.4f} per ten metres of inverse depth, "
        f"delta_1 {100 * entry['test_delta_1']:.2f} %, both after alignment"
    )
