"""Which guidance scale a row has."""

from __future__ import annotations

from dataclasses import dataclass

from ablations.cells.scores import Score
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact
from ablations.settings.setting import SelectionRule

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection(Cell):
    """Selects a model's guidance scale on seeds that no row is measured on, guiding alone.

    Attributes:
        rule: of the model's task.
        candidates: one per scale.
    """

    rule: SelectionRule
    candidates: tuple[Score, ...]

    def compute(self, load: Load) -> Artifact:
        scores = [load(score).meta for score in self.candidates]
        (scale,) = scores[self.rule.select(scores)]["scales"]
        return Artifact({"scale": scale})
