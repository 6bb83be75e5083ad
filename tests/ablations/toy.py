"""Cells that need no network: worker processes import them from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ablations.cells import Cell, Load
from ablations.errors import UserError
from ablations.store import Artifact


@dataclass(frozen=True)
class Number(Cell):
    value: int

    def compute(self, load: Load) -> Artifact:
        return Artifact({"value": self.value}, {"array": np.full(3, self.value)})


@dataclass(frozen=True)
class Sum(Cell):
    parts: tuple[Cell, ...]

    def compute(self, load: Load) -> Artifact:
        return Artifact({"value": sum(load(part).meta["value"] for part in self.parts)})


@dataclass(frozen=True)
class Alone(Sum):
    ALONE: ClassVar[bool] = True


@dataclass(frozen=True)
class Failing(Cell):
    how: str

    def compute(self, load: Load) -> Artifact:
        if self.how == "die":
            os._exit(9)
        if self.how == "user":
            raise UserError("wrong", "mend")
        raise ZeroDivisionError("by nothing")
