"""Cells that end in a record: what the reports read.

``compute`` puts the record under ``record`` in the artifact's meta; every number in it comes
with the provenance of the artifacts that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablations.cells.experts import Experts
from ablations.cells.intervals import PairedTest, RowFigures, interval_fields
from ablations.cells.noise import GradientQuality, NoiseAccuracy
from ablations.cells.samples import record_scale, sampler_name
from ablations.cells.scores import Score
from ablations.cells.setup import Setup
from ablations.cells.speed import TransferSpeed
from ablations.machine.cell import Cell, Load
from ablations.machine.records import joined
from ablations.machine.store import Artifact
from ppap.evaluation.intervals import bootstrap_mean, holm

__all__ = [
    "About",
    "Axis",
    "Comparison",
    "Measurement",
    "NoiseCurve",
    "PartialComparison",
    "Result",
    "Row",
    "TradeoffPoint",
]

Axis = tuple[str, str | float | int | bool]


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
        supervision: ``"labelled"``, ``"data-free"``, ``"shuffled"`` or ``"none"``.
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
            "path": setup.path,
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
class Row(Result):
    """One row of a table of guided samples: a method over all seeds."""

    seeds: tuple[int, ...]
    sampler: str
    figures: RowFigures
    banks: tuple[Experts, ...] = ()
    noise: tuple[NoiseAccuracy, ...] = ()
    gradients: tuple[GradientQuality, ...] = ()
    speed: TransferSpeed | None = None

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from self.figures.scores
        yield from (score.samples for score in self.figures.scores)

    def compute(self, load: Load) -> Artifact:
        figures = load(self.figures).meta
        banks = [load(bank) for bank in self.banks]
        record = self.head("row") | self.about.facts()
        record |= {
            "sampler": self.sampler,
            "seeds": list(self.seeds),
            "trainable_share": banks[0].meta["trainable_share"] if banks else 0.0,
            "scale": figures["scale"],
            "samples": figures["samples"],
            **figures["metrics"],
        }
        if banks:
            seconds = [bank.meta["provenance"]["wall_seconds"] for bank in banks]
            # Where several tasks guide at once, each has a bank for every seed.
            record["train_seconds"] = float(np.sum(seconds) / len(self.seeds))
        if self.noise:
            curves = [load(cell).meta["accuracy"] for cell in self.noise]
            record["noisy_accuracy"] = float(np.mean(curves))
        if self.gradients:
            cosines = [load(cell).arrays["cosines"] for cell in self.gradients]
            record |= interval_fields("gradient_cosine", bootstrap_mean(cosines))
        if self.speed:
            record |= load(self.speed).meta["metrics"]
        record["per_seed"] = [
            {"seed": seed} | values
            for seed, values in zip(self.seeds, figures["per_seed"], strict=True)
        ]
        record["provenance"] = self._provenance(load, banks, figures)
        return Artifact({"record": record})

    def _provenance(
        self, load: Load, banks: list[Artifact], figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        samples = [load(score.samples) for score in self.figures.scores]
        return provenance([*samples, *banks]) | {
            "feature_extractor": figures["extractor"],
            "samples_per_fid": figures["samples_per_fid"],
            "configuration": {
                "samples": samples[0].meta["cell"],
                "experts": banks[0].meta["cell"] if banks else None,
                "losses": [bank.meta["losses"] for bank in banks],
                "artifacts": [score.key for score in self.figures.scores],
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

    @property
    def family(self) -> int:
        """How many rows are compared with this reference."""
        return len(self.tests)

    def compute(self, load: Load) -> Artifact:
        found = [load(test).meta for test in self.tests]
        differences = {}
        for metric in self.tests[self.place].metrics():
            unknown = [1.0] * (self.family - len(found))
            corrected = holm([*(meta[metric]["p"] for meta in found), *unknown])
            differences[metric] = found[self.place][metric] | {"p_corrected": corrected[self.place]}
        record = self.head("comparison") | {
            "row": self.row,
            "reference": self.reference,
            "comparisons": self.family,
            "differences": differences,
        }
        return Artifact({"record": record})


@dataclass(frozen=True)
class PartialComparison(Comparison):
    """The same where only some rows of the family were asked for.

    Those left out count as if they differed by nothing: no p-value is smaller than it would be
    among all of them.

    Attributes:
        left_out: how many.
    """

    left_out: int

    @property
    def family(self) -> int:
        return len(self.tests) + self.left_out

    def compute(self, load: Load) -> Artifact:
        record = super().compute(load).meta["record"]
        return Artifact({"record": record | {"left_out": self.left_out}})


@dataclass(frozen=True)
class TradeoffPoint(Result):
    """Guided accuracy and FID at one scale, on the selection seeds."""

    score: Score

    def compute(self, load: Load) -> Artifact:
        meta = load(self.score).meta
        record = self.head("tradeoff") | {
            "sampler": sampler_name(self.score.samples.sampler),
            "scale": record_scale(meta["scales"]),
            "seed": 0,
            "samples": meta["count"],
            "accuracy": meta.get("accuracy"),  # of a class that is judged by other figures
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


def provenance(parts: Iterable[Artifact]) -> dict[str, Any]:
    """Of a computation that reads these; see :func:`ablations.machine.records.joined`."""
    return joined(part.meta["provenance"] for part in parts)
