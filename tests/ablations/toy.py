"""Cells that need no network: worker processes import them from here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ablations.errors import UserError
from ablations.machine.cell import Cell, Load
from ablations.machine.store import Artifact


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
class Slow(Sum):
    """Takes a while, and writes down in a folder of the test's that it has been computed."""

    milliseconds: int
    log: str

    def compute(self, load: Load) -> Artifact:
        time.sleep(self.milliseconds / 1000)
        with Path(self.log).open("a") as file:
            file.write(f"{self.key}\n")
        value = self.milliseconds + sum(load(part).meta["value"] for part in self.parts)
        return Artifact(
            {"value": value, "record": {"key": self.key, "kind": "toy", "value": value}}
        )


class UnpicklableError(Exception):
    """Cannot be made from its ``args`` alone, as some libraries' errors cannot."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{number} {what}")


@dataclass(frozen=True)
class Failing(Cell):
    how: str

    def compute(self, load: Load) -> Artifact:
        if self.how == "unpicklable":
            raise UnpicklableError(3, "wrongs")
        if self.how == "die":
            os._exit(9)
        if self.how == "user":
            raise UserError("wrong", "mend")
        if self.how == "memory":
            raise MemoryError("too big")
        raise ZeroDivisionError("by nothing")


@dataclass(frozen=True)
class Fragile(Cell):
    """Kills its worker the first time, as the kernel does when memory runs out."""

    marker: str

    def compute(self, load: Load) -> Artifact:
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            os._exit(9)
        return Artifact({"value": 1})


@dataclass(frozen=True)
class Poisoner(Cell):
    """Damages the file of another cell's artifact."""

    victim: Cell
    path: str

    def compute(self, load: Load) -> Artifact:
        Path(self.path).write_bytes(b"poison")
        return Artifact({"value": 0})


@dataclass(frozen=True)
class Thief(Poisoner):
    """Damages what it then reads itself."""

    def compute(self, load: Load) -> Artifact:
        super().compute(load)
        return load(self.victim)


@dataclass(frozen=True)
class Pid(Cell):
    """Tells which process computed it."""

    def compute(self, load: Load) -> Artifact:
        return Artifact({"value": os.getpid()})


@dataclass(frozen=True)
class ShownGpu(Cell):
    """Tells which GPU its process is shown, once as many others of its kind are under way."""

    number: int
    beside: int
    folder: str

    def compute(self, load: Load) -> Artifact:
        Path(self.folder, str(self.number)).touch()
        while len(os.listdir(self.folder)) < self.beside:
            time.sleep(0.01)
        return Artifact({"value": os.environ.get("CUDA_VISIBLE_DEVICES")})
