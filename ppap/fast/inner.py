"""Within guides around guides: what is around runs as it is, the guide within by its graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppap.diffusion.guide import Guide, State

__all__ = ["InnerGuide"]

GradientOf = Callable[[Guide, State, bool], Tensor | None]


class InnerGuide:
    """A guide whose gradient is computed elsewhere, for the length of a trajectory.

    Args:
        guide: what it stands for.
        gradient: gives its gradient in a state; told whether it is asked for the first time.
    """

    def __init__(self, guide: Guide, gradient: GradientOf) -> None:
        self.guide = guide
        self._gradient = gradient
        self._begins = True

    def __call__(self, state: State) -> Tensor | None:
        begins, self._begins = self._begins, False
        return self._gradient(self.guide, state, begins)

    @property
    def target_count(self) -> int | None:
        return self.guide.target_count

    def to(self, device: torch.device | str) -> None:
        """It is for one trajectory, which is where it is."""

    def rows(self, chosen: slice) -> InnerGuide:
        return InnerGuide(self.guide.rows(chosen), self._gradient)
