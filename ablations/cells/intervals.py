"""How sure a row's figures are: bootstrap intervals, and paired tests against a reference row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ablations.cells.samples import record_scale
from ablations.cells.scores import DIVERSITY, FEATURES, Score
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ppap.evaluation.features import Features
from ppap.evaluation.intervals import (
    Interval,
    bootstrap_fid,
    bootstrap_mean,
    fid_infinity,
    paired_fid,
    paired_mean,
)

__all__ = ["QUALITY", "PairedTest", "RowFigures", "interval_fields"]

MEANS_PER_FID = 5
"""Bootstrap replicates of a mean for each of an FID, which takes a thousand times as long."""
QUALITY = ("kid", "inception_score", "precision", "recall", "sfid")
"""Figures of all samples together besides FID; see :class:`ppap.evaluation.metrics.Quality`."""


@dataclass(frozen=True)
class RowFigures(Cell):
    """Figures of a row over all seeds, with intervals; rows of several sweeps share it.

    Attributes:
        scores: one per seed.
        resamples: bootstrap replicates of an FID.
        quality: which of :data:`QUALITY` are reported.
    """

    setup: Setup
    scores: tuple[Score, ...]
    resamples: int
    quality: tuple[str, ...] = QUALITY

    def label(self) -> str:
        return "intervals"

    def seconds(self) -> float:
        return 0.2 + 0.004 * self.resamples * len(self.scores)

    def compute(self, load: Load) -> Artifact:
        scores, setting = [load(score) for score in self.scores], self.setup.load()
        metas = [score.meta for score in scores]
        per_image = setting.metrics + ((DIVERSITY,) if setting.order.paired else ())
        features = [score.arrays[FEATURES] for score in scores]
        metrics: dict[str, Any] = {}
        for name in per_image:
            values = [score.arrays[name] for score in scores]
            found = bootstrap_mean(values, MEANS_PER_FID * self.resamples)
            metrics |= interval_fields(name, found)
        fid = bootstrap_fid(features, setting.reference(), self.resamples)
        metrics |= interval_fields("fid", fid)
        metrics["fid_infinity"] = self.fid_infinity(np.concatenate(features), metas[0])
        metrics |= {name: mean_of([meta[name] for meta in metas]) for name in self.quality}
        kept = (*per_image, "fid", *(name for name in self.quality if metrics[name] is not None))
        return Artifact(
            {
                "scale": record_scale(metas[0]["scales"]),
                "samples": sum(meta["count"] for meta in metas),
                "extractor": metas[0]["extractor"],
                "samples_per_fid": metas[0]["count"],
                "metrics": metrics,
                "per_seed": [{name: meta[name] for name in kept} for meta in metas],
            }
        )

    def fid_infinity(self, features: Any, meta: Mapping[str, Any]) -> float | None:
        """Of all seeds' samples together; None if there are too few for the extrapolation."""
        if len(features) < max(8, 4 * features.shape[1]):
            return None
        matrix = torch.from_numpy(features)
        seen = Features(matrix, matrix[:, :1], meta["extractor"])
        return fid_infinity(seen, self.setup.load().reference())


@dataclass(frozen=True)
class PairedTest(Cell):
    """A row against the reference row of its sweep, image by image at the same seeds."""

    setup: Setup
    ours: RowFigures
    reference: RowFigures

    def inputs(self) -> Iterator[Cell]:
        yield from self.ours.scores
        yield from self.reference.scores

    def label(self) -> str:
        return "paired test"

    def seconds(self) -> float:
        return 0.2 + 0.008 * self.ours.resamples * len(self.ours.scores)

    def compute(self, load: Load) -> Artifact:
        setting, resamples = self.setup.load(), self.ours.resamples
        ours = [load(score).arrays for score in self.ours.scores]
        theirs = [load(score).arrays for score in self.reference.scores]

        def pairs(name: str) -> tuple[list[Any], list[Any]]:
            return [part[name] for part in ours], [part[name] for part in theirs]

        found = {
            name: paired_mean(*pairs(name), MEANS_PER_FID * resamples) for name in setting.metrics
        }
        found["fid"] = paired_fid(*pairs(FEATURES), setting.reference(), resamples)
        return Artifact({name: vars(difference) for name, difference in found.items()})

    def metrics(self) -> tuple[str, ...]:
        """All that is compared."""
        return (*self.setup.load().metrics, "fid")


def mean_of(values: Sequence[float | None]) -> float | None:
    """None if one of them is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def interval_fields(name: str, found: Interval) -> dict[str, float]:
    """A figure and its bounds, as records have them."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
