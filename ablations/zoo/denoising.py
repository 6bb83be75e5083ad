"""Trainings of denoisers: bfloat16 where it is native, averaged weights, a learning curve.

A training leaves its state every two minutes and continues from it with the same draws. Its
learning rate is constant until the cool-down, so that a longer training continues a shorter one
from the state that was kept before its cool-down.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablations.zoo.muon import Muon
from ablations.zoo.training import minibatches
from ppap.compute.precision import Precision, autocast
from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.schedule import Schedule
from ppap.files.images import from_uint8

__all__ = ["DenoiserRecipe", "DenoiserTraining", "noise_weights"]

CHECKPOINT_SECONDS = 120.0
AVERAGE_POWER = 6.94
"""Power of the average over a training: its width is a tenth of the steps done (arXiv
2312.02696, equation 3 of appendix C), whatever their number turns out to be."""
LEAST_ROWS = 32
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DenoiserRecipe:
    """How a denoiser is trained.

    Attributes:
        steps: optimiser steps.
        cooldown: steps at the end over which the learning rate falls linearly to 0.
        batch: images per step.
        hidden_rate: learning rate of hidden layers' weights, by Muon.
        other_rate: learning rate of everything else, by Adam.
        warm_up: steps over which both rise.
        log_noise: mean and standard deviation of the natural logarithm of noise over spread, at
            which four fifths of the images are seen; the rest are seen at uniform timesteps.
        evaluate_every: steps between points of the learning curve.
        seed: of the initial weights and all draws.
    """

    steps: int
    cooldown: int
    batch: int = 64
    hidden_rate: float = 2e-3
    other_rate: float = 1e-3
    warm_up: int = 100
    log_noise: tuple[float, float] = (-0.3, 1.4)
    evaluate_every: int = 750
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a 0-based step, as a share of its peak."""
        rising = (step + 1) / self.warm_up
        falling = (self.steps - step) / max(1, self.cooldown)
        return min(1.0, rising, falling)


def noise_weights(
    schedule: Schedule, spread: float, log_noise: tuple[float, float], uniform: float = 0.2
) -> Tensor:
    """(T,) probabilities of a schedule's timesteps, float64.

    A normal distribution of the logarithm of noise, as in Karras et al. (arXiv 2206.00364,
    table 1), where it is in units of the images' spread; mixed with ``uniform`` timesteps.
    """
    noise = -0.5 * schedule.log_snr - np.log(spread)
    density = np.exp(-0.5 * ((noise - log_noise[0]) / log_noise[1]) ** 2) * np.gradient(noise)
    mixed = (1 - uniform) * density / density.sum() + uniform / len(schedule)
    return torch.from_numpy(mixed)


class DenoiserTraining:
    """One training, resumed from its folder if there is a state in it.

    Args:
        make: builds the network with fresh weights.
        images: (N, C, H, W) uint8.
        recipe: how it is trained.
        folder: for ``state.pt``, ``plateau.pt`` (the state before the cool-down) and
            ``curve.jsonl``.
        precision: of the network's layers; weights and their average stay float32.
    """

    def __init__(
        self,
        make: Callable[[], Preconditioned],
        images: Tensor,
        recipe: DenoiserRecipe,
        folder: Path,
        precision: Precision,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.network, self.averaged = make(), make().eval().requires_grad_(False)
        self.averaged.load_state_dict(self.network.state_dict())
        for network in (self.network, self.averaged):
            # With Conv1d among the weights, channels-last is for four dimensions alone.
            network.to(memory_format=torch.channels_last)
        self.images, self.recipe, self.folder = images, recipe, folder
        self.precision = precision
        self.optimisers = _optimisers(self.network, recipe, precision)
        self.peaks = [recipe.hidden_rate, recipe.other_rate]
        self.weights = noise_weights(
            self.network.schedule, self.network.spread, recipe.log_noise
        ).cumsum(0)
        self.step, self.seconds = 0, 0.0
        if (folder / "state.pt").exists():
            self._resume()

    def run(self, evaluate: Callable[[nn.Module], dict[str, Any]]) -> nn.Module:
        """Train to the end; the averaged network.

        Args:
            evaluate: figures of an averaged network, for the learning curve.
        """
        recipe = self.recipe
        batches = minibatches(len(self.images), recipe.batch, recipe.seed)
        for _ in range(self.step):
            next(batches)
        saved_at, began, running = time.monotonic(), time.process_time() - self.seconds, 0.0
        while self.step < recipe.steps:
            value = self._advance(next(batches))
            running = value if not running else 0.98 * running + 0.02 * value
            self.seconds = time.process_time() - began
            if self.step % 50 == 0:
                _LOG.info("step %d, loss %.5f, %.0f s", self.step, running, self.seconds)
            if self.step == recipe.steps - recipe.cooldown:
                self._save("plateau.pt")
            due = self.step % recipe.evaluate_every == 0 or self.step == recipe.steps
            if due or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self._save("state.pt")
                saved_at = time.monotonic()
            if due:
                paused = time.process_time()
                self._note(running, evaluate(self.averaged))
                began += time.process_time() - paused
        return self.averaged

    def _advance(self, chosen: Tensor) -> float:
        recipe, network = self.recipe, self.network
        generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + self.step)
        x_0 = from_uint8(self.images[chosen])
        noise = torch.randn(x_0.shape, generator=generator)
        # One timestep from each of B equal parts of the distribution: less varied losses.
        places = torch.arange(len(x_0)) + torch.rand(len(x_0), generator=generator)
        t = torch.searchsorted(self.weights, places.double() / len(x_0) * self.weights[-1])
        t = t.clamp(max=len(self.weights) - 1)
        level = network.schedule.signal(t)[:, None, None, None]
        velocity = level.sqrt() * noise - (1 - level).sqrt() * x_0
        with autocast(self.precision, "cpu"):
            found = network(network.schedule.add_noise(x_0, t, noise), t)
        loss = ((found.float() - velocity) / network.output_scale(t)).square().mean()
        network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * recipe.rate_at(self.step)
            optimiser.step()
        self.step += 1
        share = 1 - (1 - 1 / self.step) ** (AVERAGE_POWER + 1)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(network.parameters()), share
            )
        return float(loss.detach())

    def _save(self, name: str) -> None:
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.folder / f"{name}.part"
        torch.save(state, part)
        part.replace(self.folder / name)

    def _resume(self) -> None:
        saved = torch.load(self.folder / "state.pt", weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.averaged.load_state_dict(saved["averaged"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]

    def _note(self, loss: float, figures: dict[str, Any]) -> None:
        row = {
            "step": self.step,
            "images": self.step * self.recipe.batch,
            "cpu_seconds": round(self.seconds),
            "learning_rate": self.recipe.rate_at(self.step - 1),
            "loss": round(loss, 5),
        }
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row | figures) + "\n")


def _optimisers(
    network: nn.Module, recipe: DenoiserRecipe, precision: Precision
) -> list[torch.optim.Optimizer]:
    """Muon for convolutions between hidden layers, Adam for all else."""
    hidden = [
        module.weight
        for module in network.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d)
        and min(module.in_channels, module.out_channels) >= LEAST_ROWS
    ]
    known = {id(weight) for weight in hidden}
    others = [weight for weight in network.parameters() if id(weight) not in known]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return [
        Muon(hidden, recipe.hidden_rate, dtype=dtype),
        torch.optim.Adam(others, recipe.other_rate, betas=(0.9, 0.99), fused=True),
    ]
