"""The sweep ``methods``: the ways of guiding one diffusion model, compared.

For every predictor: naive off-the-shelf, one noise-aware network, several labelled experts,
and PPAP, whose experts are small and saw no data. The sweep ``starts`` adds rows to the same
table: the experts of one predictor, by what each is trained from; ``supervision`` crosses
labels with what is trained. A sweep is a function from
a setting and a budget to result cells; the engine finds out what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ablations.cells import Cell, Load
from ablations.settings import Budget, Setting
from ablations.stages import (
    Experts,
    Model,
    NoiseAccuracy,
    Samples,
    Score,
    Selection,
    Setup,
    Speed,
    Synthesis,
)
from ablations.store import Artifact
from ppap.adapters import Adapter, Full, ppap_adapter
from ppap.intervals import bootstrap_fid, bootstrap_mean
from ppap.samplers import DDIM
from ppap.transfer import Start, Training

__all__ = [
    "Grid",
    "NoiseCurve",
    "Result",
    "Row",
    "TradeoffPoint",
    "methods",
    "starts",
    "supervision",
]

SAMPLER = DDIM(25)
EXPERTS = 5
LORA_RANK, LORA_ALPHA = 4, 2.0
"""alpha / rank is the paper's 0.5; its rank 16 would be full rank in networks this narrow."""
SYNTHESIS_SEED, SELECTION_SEED, ROW_SEED, SEED_STRIDE = 10**9, 2 * 10**9, 3 * 10**9, 10**7
SHARD = 1_000
GRID_COLUMNS = 8
LEARNING_RATES = {"full": 1e-3, "lora": 3e-3}

Supervision = Literal["labelled", "data-free"]


@dataclass(frozen=True)
class Method:
    """One way of guiding.

    Attributes:
        name: as in the tables.
        experts: how many, 0 for an untouched predictor.
        supervision: what they are trained on.
        adapter: what is trained of the predictor: all of it, or the paper's adapter.
        start: what an expert starts from.
    """

    name: str
    experts: int = 0
    supervision: Supervision | Literal["none"] = "none"
    adapter: Literal["full", "lora"] = "full"
    start: Start = "previous"


PAPER = (
    Method("naive"),
    Method("single", 1, "labelled"),
    Method("multi-experts", EXPERTS, "labelled"),
    Method("ppap", EXPERTS, "data-free", "lora"),
)
STARTS = (
    Method("multi-experts, from base", EXPERTS, "labelled", "full", "base"),
    Method("multi-experts, shared start", EXPERTS, "labelled", "full", "shared"),
    Method("ppap, from base", EXPERTS, "data-free", "lora", "base"),
    Method("ppap, shared start", EXPERTS, "data-free", "lora", "shared"),
)
CROSSED = (
    Method("multi-experts, data-free", EXPERTS, "data-free", "full"),
    Method("ppap, labelled", EXPERTS, "labelled", "lora"),
)
UNGUIDED = Method("unguided")


@dataclass(frozen=True)
class Result(Cell):
    """A cell that ends in a record; ``compute`` puts it under ``record`` in the meta."""

    setup: Setup
    budget: str
    method: Method
    predictor: str

    def label(self) -> str:
        return f"{type(self).__name__.lower()} {self.method.name}, {self.predictor}"

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that every record has."""
        return {
            "kind": kind,
            "sweep": "methods",
            "setting": self.setup.name,
            "budget": self.budget,
            "key": self.key,
            "method": self.method.name,
            "predictor": self.predictor,
        }


@dataclass(frozen=True)
class Row(Result):
    """One row of the table: a method over all seeds."""

    scores: tuple[Score, ...]
    seeds: tuple[int, ...]
    speed: Speed

    def inputs(self) -> Iterator[Cell]:
        yield from self.scores
        yield self.speed
        yield from (score.samples for score in self.scores)
        yield from self._banks()

    def _banks(self) -> list[Experts]:
        models = [score.samples.model for score in self.scores]
        return [model.experts for model in models if model is not None and model.experts]

    def seconds(self) -> float:
        return 3.0

    def compute(self, load: Load) -> Artifact:
        scores = [load(score) for score in self.scores]
        speed = load(self.speed).meta
        accuracy = bootstrap_mean([score.arrays["hits"] for score in scores])
        reference = self.setup.load().reference()
        fid = bootstrap_fid([score.arrays["features"] for score in scores], reference)
        shares = [load(bank).meta["trainable_share"] for bank in self._banks()]
        record = self.head("row") | {
            "supervision": self.method.supervision,
            "experts": self.method.experts,
            "trainable_share": shares[0] if shares else 0.0,
            "sampler": SAMPLER.spacing,
            "scale": scores[0].meta["scale"],
            "seeds": list(self.seeds),
            "samples": sum(score.meta["count"] for score in scores),
            **_interval("accuracy", accuracy),
            **_interval("fid", fid),
            **{key: _mean(scores, key) for key in SCORED[2:]},
            "images_per_second": speed["images_per_second"],
            "peak_memory_mib": speed["peak_memory_mib"],
            "per_seed": [
                {"seed": seed} | {key: score.meta[key] for key in SCORED}
                for seed, score in zip(self.seeds, scores, strict=True)
            ],
            "provenance": self._provenance(load, scores),
        }
        return Artifact({"record": record})

    def _provenance(self, load: Load, scores: list[Artifact]) -> dict[str, Any]:
        """Of the computation, oldest code first; wall time is that of the row's own cells."""
        parts = [*(load(score.samples) for score in self.scores), *map(load, self._banks())]
        stamps = [part.meta["provenance"] for part in parts]
        first = min(stamps, key=lambda stamp: stamp["created"])
        banks = self._banks()
        return first | {
            "dirty": any(stamp["dirty"] for stamp in stamps),
            "commits": sorted({stamp["commit"] for stamp in stamps}),
            "wall_seconds": round(sum(stamp["wall_seconds"] for stamp in stamps), 1),
            "feature_extractor": scores[0].meta["extractor"],
            "samples_per_fid": scores[0].meta["count"],
            "configuration": {
                "samples": parts[0].meta["cell"],
                "experts": load(banks[0]).meta["cell"] if banks else None,
                "losses": [load(bank).meta["losses"] for bank in banks],
                "artifacts": [score.key for score in self.scores],
            },
        }


@dataclass(frozen=True)
class TradeoffPoint(Result):
    """Guided accuracy and FID at one scale, on the selection seeds."""

    score: Score

    def compute(self, load: Load) -> Artifact:
        meta = load(self.score).meta
        record = self.head("tradeoff") | {
            "scale": meta["scale"],
            "seed": 0,
            "samples": meta["count"],
            "accuracy": meta["accuracy"],
            "fid": meta["fid"],
        }
        return Artifact({"record": record})


@dataclass(frozen=True)
class NoiseCurve(Result):
    """Accuracy of the model itself on noisy images."""

    measured: NoiseAccuracy
    seed: int

    def compute(self, load: Load) -> Artifact:
        record = self.head("noise_accuracy") | {
            "seed": self.seed,
            "timesteps": list(self.measured.timesteps),
            "accuracy": load(self.measured).meta["accuracy"],
        }
        return Artifact({"record": record})


@dataclass(frozen=True)
class Grid(Result):
    """Samples to look at: a row per class, the same seeds for every method."""

    samples: Samples

    def compute(self, load: Load) -> Artifact:
        classes = self.setup.load().classes
        drawn = load(self.samples)
        columns = min(GRID_COLUMNS, self.samples.count // len(classes))
        images = drawn.arrays["images"][: columns * len(classes)]
        # Image i shows class i mod K: one grid column holds K images in a row.
        grid = images.reshape(columns, len(classes), *images.shape[1:]).swapaxes(0, 1)
        grid = np.moveaxis(grid, 2, -1)
        record = self.head("grid") | {
            "scale": drawn.meta["scale"],
            "array": f"{self.method.name}/{self.predictor}",
            "labels": list(classes),
        }
        squeezed = grid[..., 0] if grid.shape[-1] == 1 else grid
        return Artifact({"record": record}, {"grid": squeezed})


SCORED = ("accuracy", "fid", "kid", "inception_score", "precision", "recall")


def methods(
    setting: Setting, budget: Budget, name: str, predictors: tuple[str, ...]
) -> Iterator[Result]:
    """Every way of guiding, for every predictor: the main table.

    Args:
        setting: what the experiment is run on.
        budget: how much of it.
        name: of the budget, for the records.
        predictors: which of the setting's.
    """
    build = _Builder(Setup.of(setting), budget, name)
    yield from build.method(UNGUIDED, None)
    for predictor in predictors:
        for method in PAPER:
            yield from build.method(method, predictor)


def starts(
    setting: Setting, budget: Budget, name: str, predictors: tuple[str, ...]
) -> Iterator[Result]:
    """What an expert is trained from: the one before it, the clean base, or a shared expert."""
    build = _Builder(Setup.of(setting), budget, name)
    for method in STARTS:
        yield from build.method(method, predictors[0])


def supervision(
    setting: Setting, budget: Budget, name: str, predictors: tuple[str, ...]
) -> Iterator[Result]:
    """Labels or none, crossed with full fine-tuning or adapters: what makes PPAP differ."""
    build = _Builder(Setup.of(setting), budget, name)
    for predictor in predictors:
        for method in CROSSED:
            yield from build.method(method, predictor)


@dataclass(frozen=True)
class _Builder:
    """Puts the cells of one sweep together."""

    setup: Setup
    budget: Budget
    name: str

    def method(self, method: Method, predictor: str | None) -> Iterator[Result]:
        """Everything that is measured of one method."""
        about = (self.setup, self.name, method, predictor or "none")
        seeds = tuple(range(self.budget.seeds))
        models = [predictor and Model(predictor, self.experts(method, predictor, s)) for s in seeds]
        candidates = self.candidates(models[0] or None)
        scale = Selection(candidates) if predictor else 0.0
        samples = [
            Samples(self.setup, SAMPLER, model or None, scale, _row_seed(seed), self.budget.samples)
            for seed, model in zip(seeds, models, strict=True)
        ]
        scores = tuple(Score(drawn) for drawn in samples)
        timed = self.budget.timed_images
        speed = Speed(self.setup, SAMPLER, models[0] or None, scale, timed)
        yield Row(*about, scores, seeds, speed)
        yield Grid(*about, samples[0])
        for score in candidates:
            yield TradeoffPoint(*about, score)
        for seed, model in zip(seeds, models, strict=True):
            if model and (method.experts or seed == 0):
                yield NoiseCurve(
                    *about, NoiseAccuracy(self.setup, model, self.budget.noisy_images), seed
                )

    def experts(self, method: Method, predictor: str, seed: int) -> Experts | None:
        """The trained bank of a method, None for an untouched predictor."""
        if not method.experts:
            return None
        training = Training(
            self.budget.steps,
            self.budget.batch,
            LEARNING_RATES[method.adapter],
            start=method.start,
            seed=seed,
        )
        full = method.adapter == "full"
        adapter = Adapter((Full(),)) if full else ppap_adapter(LORA_RANK, LORA_ALPHA)
        images = self.synthesis() if method.supervision == "data-free" else "labelled"
        return Experts(self.setup, predictor, method.experts, adapter, training, images)

    def synthesis(self) -> tuple[Synthesis, ...]:
        """The synthetic images, in shards that can be drawn side by side."""
        starts = range(0, self.budget.synthetic, SHARD)
        return tuple(
            Synthesis(
                self.setup,
                SAMPLER,
                SYNTHESIS_SEED + start,
                min(SHARD, self.budget.synthetic - start),
            )
            for start in starts
        )

    def candidates(self, model: Model | None) -> tuple[Score, ...]:
        """Scores on the selection seeds, one per scale; unguided, the one at scale 0."""
        drawn = Samples(
            self.setup, SAMPLER, model, 0.0, SELECTION_SEED, self.budget.selection_samples
        )
        scales = self.budget.scales if model else (0.0,)
        return tuple(Score(replace(drawn, scale=scale)) for scale in scales)


def _row_seed(seed: int) -> int:
    return ROW_SEED + seed * SEED_STRIDE


def _interval(name: str, interval: Any) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(scores: list[Artifact], key: str) -> float:
    return float(np.mean([score.meta[key] for score in scores]))
