"""Images that other code has made, in the place of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ablations.cells.samples import Samples, SampleShard
from ablations.errors import UserError
from ablations.machine.cell import Load
from ablations.machine.store import Artifact

__all__ = ["GIVEN", "Given"]

GIVEN = "given"
"""What records call the sampler of such images."""


@dataclass(frozen=True)
class Given(Samples):
    """Images (count) that were put into the store by ``python -m ablations score``.

    Attributes:
        digest: of the images and their classes.
        labelled: whether each has a class of its own; if not, image i has the setting's i-th
            target.
    """

    digest: str
    labelled: bool

    def shards(self) -> tuple[SampleShard, ...]:
        return ()

    def label(self) -> str:
        return "given images"

    def targets_of(self, task: str, drawn: Artifact) -> Tensor:
        if self.labelled:
            return torch.from_numpy(drawn.arrays["labels"].copy())
        return super().targets_of(task, drawn)

    def compute(self, load: Load) -> Artifact:
        raise UserError("the given images are no longer in the store", "score their folder again")
