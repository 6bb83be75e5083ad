"""Trainings of denoisers: bfloat16 where it saves time, averaged weights, a learning curve.

A training leaves its state every two minutes and continues from it with the same draws. Its
learning rate is constant until the cool-down, so that a longer training continues a shorter one
from the state that was kept before its cool-down. Its end is a number of steps, or a time: on a
GPU that is lent for minutes, what counts is when it ends.
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
UNLABELLED = 0.15
"""Share of a class-conditional denoiser's images that are shown without their label, by which
it is an unconditional one, too (arXiv 2207.12598, section 3.2)."""
LOGGED_STEPS = 50
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
        seconds: of the training's end, by the clock and counting what ran before an interruption;
            0 for the end after ``steps``, which else say what share of it is the cool-down.
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
    seconds: float = 0.0

    @property
    def constant_share(self) -> float:
        """Of the training, with a constant learning rate."""
        return (self.steps - self.cooldown) / self.steps

    def rate_at(self, step: int, done: float | None = None) -> float:
        """Learning rate of a 0-based step, as a share of its peak.

        Args:
            step: of the optimiser.
            done: share of the training that is behind; by default that of its steps.
        """
        left = 1 - (step / self.steps if done is None else done)
        rising = (step + 1) / self.warm_up
        falling = left * self.steps / self.cooldown if self.cooldown else 1.0
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
        device: where it is trained; on a GPU the network is compiled.
        labels: (N,) int64 in 0..K-1 for a network conditional on K + 1 classes, the last of which
            stands for none; None for an unconditional one.
    """

    def __init__(
        self,
        make: Callable[[], Preconditioned],
        images: Tensor,
        recipe: DenoiserRecipe,
        folder: Path,
        precision: Precision,
        device: torch.device | str = "cpu",
        labels: Tensor | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.device = torch.device(device)
        self.network = make().to(self.device)
        self.averaged = make().to(self.device).eval().requires_grad_(False)
        self.averaged.load_state_dict(self.network.state_dict())
        for network in (self.network, self.averaged):
            # With Conv1d among the weights, channels-last is for four dimensions alone.
            network.to(memory_format=torch.channels_last)
        self.images, self.recipe, self.folder = images.to(self.device), recipe, folder
        self.labels = None if labels is None else labels.to(self.device)
        self.precision = precision
        on_gpu = self.device.type == "cuda"
        self.predict = torch.compile(self.network) if on_gpu else self.network
        self.optimisers = _optimisers(self.network, recipe, precision)
        self.peaks = [recipe.hidden_rate, recipe.other_rate]
        self.weights = noise_weights(
            self.network.schedule, self.network.spread, recipe.log_noise
        ).cumsum(0)
        self.weights = self.weights.to(self.device)
        by_the_world = on_gpu or recipe.seconds > 0
        self._clock = time.monotonic if by_the_world else time.process_time
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
        saved_at, began, running = time.monotonic(), self._clock() - self.seconds, None
        before = self._done()
        while (done := self._done()) < 1:
            if before < recipe.constant_share <= done:
                self._save("plateau.pt")
            value, before = self._advance(next(batches), done), done
            running = value if running is None else running.lerp_(value, 0.02)
            self.seconds = self._clock() - began
            if self.step % LOGGED_STEPS == 0:
                _LOG.info("step %d, loss %.5f, %.0f s", self.step, float(running), self.seconds)
            due = self.step % recipe.evaluate_every == 0 or self._done() >= 1
            if due or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self._save("state.pt")
                saved_at = time.monotonic()
            if due:
                paused = self._clock()
                self._note(float(running), recipe.rate_at(self.step - 1, done), evaluate)
                if not recipe.seconds:  # such a training ends when it has to, whatever it did
                    began += self._clock() - paused
        return self.averaged

    def _done(self) -> float:
        """Share of the training that is behind."""
        if self.recipe.seconds:
            return self.seconds / self.recipe.seconds
        return self.step / self.recipe.steps

    def _advance(self, chosen: Tensor, done: float) -> Tensor:
        """One step on the chosen images; its loss."""
        recipe, network, on = self.recipe, self.network, self.device
        generator = torch.Generator(on).manual_seed(1_000_003 * recipe.seed + self.step)
        chosen = chosen.to(on)
        x_0 = from_uint8(self.images[chosen])
        noise = torch.randn(x_0.shape, generator=generator, device=on)
        # One timestep from each of B equal parts of the distribution: less varied losses.
        places = torch.arange(len(x_0), device=on)
        places = places + torch.rand(len(x_0), generator=generator, device=on)
        t = torch.searchsorted(self.weights, places.double() / len(x_0) * self.weights[-1])
        t = t.clamp(max=len(self.weights) - 1)
        conditions = self._conditions(chosen, generator)
        level = network.signal(t)
        velocity = level.sqrt() * noise - (1 - level).sqrt() * x_0
        with autocast(self.precision, on):
            found = self.predict(level.sqrt() * x_0 + (1 - level).sqrt() * noise, t, **conditions)
        loss = ((found.float() - velocity) / network.output_scale(t)).square().mean()
        network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * recipe.rate_at(self.step, done)
            optimiser.step()
        self.step += 1
        share = 1 - (1 - 1 / self.step) ** (AVERAGE_POWER + 1)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(network.parameters()), share
            )
        return loss.detach()

    def _conditions(self, chosen: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if self.labels is None:
            return {}
        labels = self.labels[chosen]
        hidden = torch.rand(len(labels), generator=generator, device=self.device) < UNLABELLED
        return {"y": torch.where(hidden, self.labels.amax() + 1, labels)}

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
        saved = torch.load(self.folder / "state.pt", map_location=self.device, weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.averaged.load_state_dict(saved["averaged"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]

    def _note(
        self, loss: float, rate: float, evaluate: Callable[[nn.Module], dict[str, Any]]
    ) -> None:
        row = {
            "step": self.step,
            "images": self.step * self.recipe.batch,
            "seconds": round(self.seconds),
            "learning_rate": round(rate, 4),
            "loss": round(loss, 5),
        }
        row |= evaluate(self.averaged)
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


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
