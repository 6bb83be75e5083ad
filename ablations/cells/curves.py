"""Cells that end in the record of a curve, and of what is claimed of two curves.

A curve is an arm, one way to guide, over guidance scales and units; a unit is a training seed, or
a block of sampling seeds where nothing is trained. Claims hold no numbers: the reports test them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ablations.cells.curve_points import Points, best_place, mean_scores
from ablations.cells.experts import Experts
from ablations.cells.results import Result, provenance
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from reports.schema import Quantity

__all__ = ["Claim", "Curve", "Expected", "Quantity"]

Expected = Literal["greater", "less", "equivalent"]


@dataclass(frozen=True)
class Curve(Result):
    """What an arm reaches at every scale, unit by unit.

    Attributes:
        sampler: as records call it.
        units: their numbers; unit u of every arm draws from the same seeds towards the same
            targets.
        metric: of the scores.
        higher_is_better: of the scores.
        points: by scale and unit, of all doublings.
        banks: the trained experts of each unit; none where nothing is trained.
    """

    sampler: str
    units: tuple[int, ...]
    metric: str
    higher_is_better: bool
    points: Points
    banks: tuple[Experts, ...] = ()

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        yield from (score.samples for row in self.points for score in row)
        yield from self.choices()

    def choices(self) -> Iterator[Cell]:
        """What chose how each unit is guided, where something did."""
        for score in self.points[0]:
            for part in score.samples.guidance:
                if isinstance(choice := getattr(part.model, "refinement", None), Cell):
                    yield choice

    def compute(self, load: Load) -> Artifact:
        scores = mean_scores(self.points, load)
        measured = self.points[: len(scores)]
        points = [
            {"unit": unit} | load(score).meta["figures"]
            for row in measured
            for unit, score in zip(self.units, row, strict=True)
        ]
        last = best_place(scores, self.higher_is_better) == len(scores) - 1
        record = self.head("curve") | self.about.facts()
        record |= {
            "sampler": self.sampler,
            "trained_steps": self.banks[0].training.steps if self.banks else 0,
            "units": list(self.units),
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "points": points,
            "unbounded": last and len(self.points) > 1,
        }
        if chosen := [load(choice).meta["name"] for choice in self.choices()]:
            record["chosen"] = chosen
        cells = [score for row in measured for score in row]
        samples = [load(score.samples) for score in cells]
        banks = [load(bank) for bank in self.banks]
        record["provenance"] = provenance([*samples, *banks]) | {
            "feature_extractor": load(cells[0]).meta["extractor"],
            "pixel_extractor": cells[0].reference.extractor,
            "samples_per_fid": cells[0].samples.count,
            "configuration": {
                "samples": samples[0].meta["cell"],
                "experts": banks[0].meta["cell"] if banks else None,
                "artifacts": [score.key for score in cells],
            },
        }
        return Artifact({"record": record})


@dataclass(frozen=True)
class Claim(Result):
    """A sentence that can be true or false, and the contrast of two curves that decides it.

    Attributes:
        statement: the sentence.
        source: who says so.
        ours: method of a curve of the same predictor.
        theirs: method that it is compared with.
        family: of claims of one sweep and predictor whose tests are corrected together.
        quantity: what is compared.
        expected: what ours less theirs is if the statement is true.
        margin: the smallest difference that matters, in the units of the quantity.
        comparisons: claims of the family, those whose rows were not asked for among them.
    """

    statement: str
    source: str
    ours: str
    theirs: str
    family: str
    quantity: Quantity
    expected: Expected
    margin: float
    comparisons: int = 1

    def compute(self, load: Load) -> Artifact:
        record = self.head("claim") | {
            name: getattr(self, name)
            for name in (
                "statement", "source", "ours", "theirs", "family", "quantity", "expected", "margin",
                "comparisons",
            )
        }  # fmt: skip
        return Artifact({"record": record})
