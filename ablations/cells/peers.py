"""Samples by any method of guidance, and the search for its options at an equal budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from ablations.cells.curve_points import ExtendedSamples
from ablations.cells.plugins import load_guide
from ablations.cells.samples import Samples, SampleShard
from ablations.cells.scores import Score
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import SelectionRule, device
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.stepping import AnyGuide
from ppap.guidance import METHODS
from ppap.guidance.guides import IgnoreTimestep
from ppap.guidance.likelihoods import (
    AtLeastNoise,
    ImageLikelihood,
    Likelihood,
    NoisyLikelihood,
    SumOfLikelihoods,
)
from ppap.guidance.methods.elucd import CalibratedLogits
from ppap.predictors.softplus import with_softplus

__all__ = ["ExtendedPeerSamples", "Peer", "PeerSamples", "Search", "Trial"]

Option = tuple[str, str | float | int]


@dataclass(frozen=True)
class Peer:
    """A method of guidance.

    Attributes:
        method: of ``ppap.guidance.METHODS``, or a plugin's module.
        looks_at: x_t, or the predicted image x_0 (where a bank's expert of least noise looks).
        digest: of a plugin's code.
    """

    method: str
    looks_at: Literal["x_t", "x_0"]
    digest: str = ""


@dataclass(frozen=True)
class Trial:
    """What a search tries.

    Attributes:
        scale: of guidance, relative to the tasks' own.
        eta: of DDIM.
        options: of the method, by name.
    """

    scale: float
    eta: float
    options: tuple[Option, ...] = ()

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Trial:
        """The trial that a search, or a row's record of it, tells."""
        options = tuple((str(name), _as_given(value)) for name, value in found["options"])
        return cls(found["scale"], found["eta"], options)


def _as_given(value: Any) -> Any:
    """An option's value as a plugin gave it, which had tuples where JSON has lists."""
    return tuple(map(_as_given, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class PeerSamples(Samples):
    """Images that a method guided; the guidance's scales are its targets' weights.

    Attributes:
        peer: the method.
        trial: its options, or the search for them.
        strength: the scale is multiplied by it.
    """

    peer: Peer
    trial: Trial | Cell
    strength: float = 1.0

    def shards(self) -> tuple[SampleShard, ...]:
        return ()

    def guidance_inputs(self) -> Iterator[Cell]:
        yield from super().guidance_inputs()
        if isinstance(self.trial, Cell):
            yield self.trial

    @property
    def guided_by(self) -> str:
        return f"{super().guided_by}, {self.peer.method}"

    def image_seconds(self) -> float:
        through_denoiser = 3.0 if self.peer.looks_at == "x_0" else 1.0
        return super().image_seconds() * through_denoiser

    def chosen(self, load: Load) -> Trial:
        """The trial, read from the search if it was searched for."""
        if isinstance(self.trial, Trial):
            return self.trial
        return Trial.of(load(self.trial).meta["trial"])

    def prepared(
        self, load: Load, seeds: Sequence[int]
    ) -> tuple[Denoiser, AnyGuide, DDIM, Likelihood]:
        """All that drawing from these seeds takes, and what the guide follows."""
        trial = self.chosen(load)
        options = dict(trial.options)
        likelihood = self.likelihood(load, seeds, options)
        guide = load_guide(self.peer.method)(likelihood, trial.scale * self.strength, **options)
        assert isinstance(self.sampler, DDIM)
        denoiser = self.setup.load().denoiser().to(device())
        return denoiser, guide, replace(self.sampler, eta=trial.eta), likelihood

    def likelihood(self, load: Load, seeds: Sequence[int], options: dict[str, Any]) -> Likelihood:
        """Of the targets of images from these seeds; takes its own options out of ``options``.

        Of a plugin it takes none: whatever their names, they are its class's.
        """
        tasks, numbers = self.setup.load().tasks, self.target_numbers(seeds)
        own = options if self.peer.method in METHODS else {}
        softplus, marginal = own.pop("softplus", 0), own.pop("marginal", None)
        parts: list[Likelihood] = []
        for part in self.guidance:
            targets = tasks[part.model.task].targets(numbers)
            made = part.model.guide(self.setup, load, targets, 1.0)
            task: Any = made.task
            if marginal is not None and part.model.task == "class":
                task = CalibratedLogits(1.0, marginal)
            model: Any = made.model
            clean = isinstance(model, IgnoreTimestep)
            network = model.predictor if isinstance(model, IgnoreTimestep) else model
            if softplus:
                network = with_softplus(network, softplus)
            weight = part.selected_scale(load)
            if self.peer.looks_at == "x_t":
                model = IgnoreTimestep(network) if clean else network
                parts.append(NoisyLikelihood(model, task, targets, weight))
            else:
                predictor = network if clean else AtLeastNoise(network)
                parts.append(ImageLikelihood(predictor, task, targets, weight))
        return parts[0] if len(parts) == 1 else SumOfLikelihoods(tuple(parts))

    def guide(self, load: Load, seeds: Sequence[int]) -> AnyGuide:
        return self.prepared(load, seeds)[1]

    def draw(self, load: Load, seeds: Sequence[int], batch: int | None = None) -> Tensor:
        denoiser, guide, sampler, _ = self.prepared(load, seeds)
        return self.sampled(denoiser, seeds, guide, sampler, batch)

    def compute(self, load: Load) -> Artifact:
        drawn, trial = super().compute(load), self.chosen(load)
        meta = {"scales": [trial.scale * self.strength], "trial": asdict(trial)}
        return Artifact({**drawn.meta, **meta}, drawn.arrays)


@dataclass(frozen=True)
class ExtendedPeerSamples(ExtendedSamples, PeerSamples):
    """The same at a larger strength, if the method's curve goes on so far."""


@dataclass(frozen=True)
class Search(Cell):
    """Chooses a method's options on seeds that no row is measured on.

    With one target the rule is the task's own. With several, of the trials of the lowest sum of
    places, each place that among the trials by one task's metric, that of the lowest FID.

    Attributes:
        rules: of the tasks that guide.
        trials: what is tried.
        scores: of each trial.
    """

    rules: tuple[SelectionRule, ...]
    trials: tuple[Trial, ...]
    scores: tuple[Score, ...]

    def label(self) -> str:
        return "search"

    def compute(self, load: Load) -> Artifact:
        figures = [load(score).meta for score in self.scores]
        place = self.best(figures)
        kept = (*(rule.metric for rule in self.rules), "fid")
        history = [
            {**asdict(trial), **{name: found[name] for name in kept}}
            for trial, found in zip(self.trials, figures, strict=True)
        ]
        return Artifact({"trial": asdict(self.trials[place]), "history": history})

    def best(self, figures: Sequence[Any]) -> int:
        """Which of the trials, by their figures."""
        if len(self.rules) == 1:
            return self.rules[0].select(figures)
        sums = np.zeros(len(figures))
        for rule in self.rules:
            values = np.array([found[rule.metric] for found in figures])
            sums += (-values if rule.higher_is_better else values).argsort().argsort()
        near = [place for place, total in enumerate(sums) if total == sums.min()]
        return min(near, key=lambda place: float(figures[place]["fid"]))


def networks_of(likelihood: Likelihood) -> list[nn.Module]:
    """The predictors' networks that a likelihood evaluates."""
    if isinstance(likelihood, SumOfLikelihoods):
        return [network for part in likelihood.parts for network in networks_of(part)]
    model: Any = getattr(likelihood, "model", None) or getattr(likelihood, "predictor", None)
    while not isinstance(model, nn.Module):
        model = getattr(model, "model", None) or model.predictor
    found = model
    while isinstance(inner := getattr(found, "predictor", None), nn.Module):
        found = inner
    network = getattr(found, "network", found)
    assert isinstance(network, nn.Module)
    return [network]
