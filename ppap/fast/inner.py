"""Guides around guides: what is around runs as it is, the guide within by its graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ppap.diffusion.guide import Guide, State
from ppap.guidance.guides import SumOfGuides
from ppap.guidance.wrappers import AROUND

__all__ = ["InnerGuide", "is_around", "with_inner"]

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


def is_around(guide: Guide) -> bool:
    """Whether a guide is of those that merely call others, and no class derived from them."""
    return type(guide) in (*AROUND, SumOfGuides)


def with_inner(guide: Guide, gradient: GradientOf) -> Guide:
    """The same guide, around :class:`InnerGuide` of what it calls in the end."""
    if type(guide) is SumOfGuides:
        return SumOfGuides(tuple(with_inner(part, gradient) for part in guide.parts))
    if is_around(guide):
        assert isinstance(guide, AROUND)
        return replace(guide, guide=with_inner(guide.guide, gradient))
    return InnerGuide(guide, gradient)
