"""How large everything is: on a GPU, and in the rehearsal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["GPU", "REHEARSAL", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Of the workloads.

    Attributes:
        device: where they run.
        batch: images per network call.
        few: images of a short call to ``sample``.
        many: images of a long one.
        steps: of DDIM.
        training: images of a training step's batch, small and large.
        predictors: of the setting.
        compile: whether graphs are compiled.
        calls: equal ones in a row, to see which compile anew.
        candidates: configurations tried for a kernel, at most.
        rounds: of a comparison, at most.
    """

    device: str
    batch: int
    few: int
    many: int
    steps: int
    training: tuple[int, ...]
    predictors: tuple[str, ...]
    compile: bool
    calls: int
    candidates: int
    rounds: int

    @property
    def on(self) -> torch.device:
        return torch.device(self.device)


GPU = Sizes("cuda", 256, 256, 4096, 25, (40, 640), ("resnet", "vit"), True, 8, 400, 15)
REHEARSAL = Sizes("cpu", 2, 2, 3, 2, (5,), ("resnet",), False, 2, 2, 1)
