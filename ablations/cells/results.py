"""Cells that end in a record: what the reports read.

``compute`` puts the record under ``record`` in the artifact's meta; every number in it comes
with the provenance of the artifacts that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ablations.cells.measures import GradientQuality, NoiseAccuracy, TransferSpeed
from ablations.cells.stages import Experts, Samples, Score, Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ppap.evaluation.features import Features
from ppap.evaluation.intervals import (
    Interval,
    bootstrap_fid,
    bootstrap_mean,
    fid_infinity,
    holm,
    paired_fid,
    paired_mean,
)

__all__ = [
    "About",
    "Comparison",
    "Grid",
    "Measurement",
    "NoiseCurve",
    "PairedTest",
    "Result",
    "Row",
    "Scored",
    "TradeoffPoint",
    "interval",
]

Axis = tuple[str, str | float | int | bool]
GRID_COLUMNS = 8
GRID_ROWS = 10
MEANS_PER_FID = 5
"""Bootstrap replicates of a mean for each of an FID, which takes a thousand times as long."""
SCORED = ("accuracy", "fid", "kid", "inception_score", "precision", "recall")


@dataclass(frozen=True)
class About:
    """What a record says of itself.

    Attributes:
        sweep: whose it is.
        budget: name of it.
        method: the row's label.
        predictor: by name; ``"none"`` where nothing guides.
        axes: what the sweep varies, and this row's values.
        reference: whether the other rows of the sweep are compared with this one.
        experts: how many; 0 for an untouched predictor.
        supervision: ``"labelled"``, ``"data-free"`` or ``"none"``.
        adapter: what is trained of the predictor.
    """

    sweep: str
    budget: str
    method: str
    predictor: str = "none"
    axes: tuple[Axis, ...] = ()
    reference: bool = False
    experts: int = 0
    supervision: str = "none"
    adapter: str = "none"

    def head(self, kind: str, setup: Setup, key: str) -> dict[str, Any]:
        """The fields that every record has."""
        return {
            "kind": kind,
            "sweep": self.sweep,
            "setting": setup.name,
            "budget": self.budget,
            "key": key,
            "method": self.method,
            "predictor": self.predictor,
        }

    def facts(self) -> dict[str, Any]:
        """The fields of a row."""
        return {
            "axes": dict(self.axes),
            "reference": self.reference,
            "experts": self.experts,
            "supervision": self.supervision,
            "adapter": self.adapter,
        }


@dataclass(frozen=True)
class Result(Cell):
    """A cell that ends in a record."""

    setup: Setup
    about: About

    def label(self) -> str:
        about = self.about
        return f"{about.sweep}: {type(self).__name__.lower()} {about.method}, {about.predictor}"

    def head(self, kind: str) -> dict[str, Any]:
        return self.about.head(kind, self.setup, self.key)


@dataclass(frozen=True)
class Scored(Cell):
    """The samples of a row over all seeds, with intervals; rows of several sweeps share it."""

    setup: Setup
    scores: tuple[Score, ...]
    resamples: int

    def label(self) -> str:
        return "intervals"

    def seconds(self) -> float:
        return 0.2 + 0.004 * self.resamples * len(self.scores)

    def compute(self, load: Load) -> Artifact:
        scores = [load(score) for score in self.scores]
        reference = self.setup.load().reference()
        hits = [score.arrays["hits"] for score in scores]
        features = [score.arrays["features"] for score in scores]
        meta = {
            "scale": scores[0].meta["scale"],
            "samples": sum(score.meta["count"] for score in scores),
            "extractor": scores[0].meta["extractor"],
            "samples_per_fid": scores[0].meta["count"],
            "metrics": {
                **interval("accuracy", bootstrap_mean(hits, MEANS_PER_FID * self.resamples)),
                **interval("fid", bootstrap_fid(features, reference, self.resamples)),
                "fid_infinity": self.fid_infinity(np.concatenate(features), scores[0].meta),
                **{key: float(np.mean([s.meta[key] for s in scores])) for key in SCORED[2:]},
                "sfid": mean_of([score.meta.get("sfid") for score in scores]),
            },
            "per_seed": [{key: score.meta[key] for key in SCORED} for score in scores],
        }
        return Artifact(meta)

    def paired(self, reference: Scored) -> PairedTest:
        """The test of these samples against those of a reference row."""
        return PairedTest(self.setup, self, reference)

    def fid_infinity(self, features: Any, meta: Mapping[str, Any]) -> float | None:
        """Of all seeds' samples together; None if there are too few for the extrapolation."""
        if len(features) < max(8, 4 * features.shape[1]):
            return None
        matrix = torch.from_numpy(features)
        seen = Features(matrix, matrix[:, :1], meta["extractor"])
        return fid_infinity(seen, self.setup.load().reference())


@dataclass(frozen=True)
class Row(Result):
    """One row of a table of guided samples: a method over all seeds."""

    seeds: tuple[int, ...]
    sampler: str
    scored: Scored
    banks: tuple[Experts, ...] = ()
    noise: tuple[NoiseAccuracy, ...] = ()
    gradients: tuple[GradientQuality, ...] = ()
    speed: TransferSpeed | None = None

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from self.scored.scores
        yield from (score.samples for score in self.scored.scores)

    def compute(self, load: Load) -> Artifact:
        scored = load(self.scored).meta
        banks = [load(bank) for bank in self.banks]
        record = self.head("row") | self.about.facts()
        record |= {
            "sampler": self.sampler,
            "seeds": list(self.seeds),
            "trainable_share": banks[0].meta["trainable_share"] if banks else 0.0,
            "scale": scored["scale"],
            "samples": scored["samples"],
            **scored["metrics"],
        }
        if banks:
            seconds = [bank.meta["provenance"]["wall_seconds"] for bank in banks]
            record["train_seconds"] = float(np.mean(seconds))
        if self.noise:
            curves = [load(cell).meta["accuracy"] for cell in self.noise]
            record["noisy_accuracy"] = float(np.mean(curves))
        if self.gradients:
            cosines = [load(cell).arrays["cosines"] for cell in self.gradients]
            record |= interval("gradient_cosine", bootstrap_mean(cosines))
        if self.speed:
            record |= load(self.speed).meta["metrics"]
        record["per_seed"] = [
            {"seed": seed} | values
            for seed, values in zip(self.seeds, scored["per_seed"], strict=True)
        ]
        record["provenance"] = self._provenance(load, banks, scored)
        return Artifact({"record": record})

    def _provenance(
        self, load: Load, banks: list[Artifact], scored: Mapping[str, Any]
    ) -> dict[str, Any]:
        samples = [load(score.samples) for score in self.scored.scores]
        return provenance([*samples, *banks]) | {
            "feature_extractor": scored["extractor"],
            "samples_per_fid": scored["samples_per_fid"],
            "configuration": {
                "samples": samples[0].meta["cell"],
                "experts": banks[0].meta["cell"] if banks else None,
                "losses": [bank.meta["losses"] for bank in banks],
                "artifacts": [score.key for score in self.scored.scores],
            },
        }


@dataclass(frozen=True)
class Measurement(Result):
    """A row whose numbers are those of its parts, such as a throughput or a memory."""

    parts: tuple[Cell, ...]

    def compute(self, load: Load) -> Artifact:
        parts = [load(part) for part in self.parts]
        record = self.head("row") | self.about.facts()
        for part in parts:
            record |= part.meta["metrics"]
        record["provenance"] = provenance(parts) | {
            "configuration": {"parts": [part.meta["cell"] for part in parts]}
        }
        return Artifact({"record": record})


@dataclass(frozen=True)
class PairedTest(Cell):
    """A row against the reference row of its sweep, image by image at the same seeds."""

    setup: Setup
    ours: Scored
    reference: Scored

    def inputs(self) -> Iterator[Cell]:
        yield from self.ours.scores
        yield from self.reference.scores

    def label(self) -> str:
        return "paired test"

    def seconds(self) -> float:
        return 0.2 + 0.008 * self.ours.resamples * len(self.ours.scores)

    def compute(self, load: Load) -> Artifact:
        ours = [load(score).arrays for score in self.ours.scores]
        theirs = [load(score).arrays for score in self.reference.scores]
        resamples = self.ours.resamples
        means = {
            metric: paired_mean(
                [part[name] for part in ours],
                [part[name] for part in theirs],
                MEANS_PER_FID * resamples,
            )
            for metric, name in self.means().items()
        }
        fid = paired_fid(
            [part["features"] for part in ours],
            [part["features"] for part in theirs],
            self.setup.load().reference(),
            resamples,
        )
        return Artifact({metric: vars(found) for metric, found in (means | {"fid": fid}).items()})

    def metrics(self) -> tuple[str, ...]:
        """All that is compared."""
        return (*self.means(), "fid")

    def means(self) -> dict[str, str]:
        """Metrics that are means over images, and the arrays that hold them."""
        return {"accuracy": "hits"}


@dataclass(frozen=True)
class Comparison(Result):
    """A row's difference to the reference row, its p-value corrected for the number of rows.

    Attributes:
        row: key of the row's record.
        reference: key of the reference row's record.
        tests: of all rows that are compared with this reference.
        place: which of them is this row's.
    """

    row: str
    reference: str
    tests: tuple[PairedTest, ...]
    place: int

    def compute(self, load: Load) -> Artifact:
        found = [load(test).meta for test in self.tests]
        differences = {}
        for metric in self.tests[self.place].metrics():
            corrected = holm([meta[metric]["p"] for meta in found])
            differences[metric] = found[self.place][metric] | {"p_corrected": corrected[self.place]}
        record = self.head("comparison") | {
            "row": self.row,
            "reference": self.reference,
            "comparisons": len(self.tests),
            "differences": differences,
        }
        return Artifact({"record": record})


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
        columns = max(1, min(GRID_COLUMNS, self.samples.count // len(classes)))
        held = min(len(classes), self.samples.count)
        rows = np.linspace(0, held - 1, min(GRID_ROWS, held)).round().astype(int)
        # Image i shows class i mod K: one grid column holds K images in a row.
        places = rows[:, None] + len(classes) * np.arange(columns)
        grid = np.moveaxis(drawn.arrays["images"][places], 2, -1)
        about = self.about
        record = self.head("grid") | {
            "scale": drawn.meta["scale"],
            "array": f"{about.sweep}/{about.method}/{about.predictor}",
            "labels": [classes[row] for row in rows],
        }
        squeezed = grid[..., 0] if grid.shape[-1] == 1 else grid
        return Artifact({"record": record}, {"grid": squeezed})


def provenance(parts: Iterable[Artifact]) -> dict[str, Any]:
    """Of a computation, oldest code first; wall time is that of the parts together."""
    stamps = [part.meta["provenance"] for part in parts]
    first = min(stamps, key=lambda stamp: stamp["created"])
    return first | {
        "dirty": any(stamp["dirty"] for stamp in stamps),
        "commits": sorted({stamp["commit"] for stamp in stamps}),
        "wall_seconds": round(sum(stamp["wall_seconds"] for stamp in stamps), 1),
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """None if one of them is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def interval(name: str, found: Interval) -> dict[str, float]:
    """A figure and its bounds, as records have them."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
