"""What guides by the same model as before, but not at every step, or not always as strongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ablations.cells.experts import Experts
from ablations.cells.guidance import Model
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ppap.diffusion.guide import Guide
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.methods.elucd import CalibratedLogits
from ppap.guidance.scale import Scale
from ppap.guidance.wrappers import GuidanceInterval

__all__ = ["Refined", "Refinement"]


@dataclass(frozen=True)
class Refinement:
    """When and how a model guides.

    Attributes:
        first: the lowest timestep at which it does.
        last: the highest one; None for no bound.
        marginal: of :class:`ppap.guidance.methods.elucd.CalibratedLogits`, in place of the task's
            own likelihood; None for that. For classes only.
        weight: of the scale: 1, or the image's share in x_t, or the noise's: sqrt(abar) or
            sqrt(1 - abar).
    """

    first: int = 0
    last: int | None = None
    marginal: float | None = None
    weight: Literal["constant", "image", "noise"] = "constant"

    def scale(self, scale: float) -> Scale:
        """The scale, as guides take it."""
        if self.weight == "image":
            return lambda abar: scale * abar.sqrt()
        if self.weight == "noise":
            return lambda abar: scale * (1 - abar).sqrt()
        return scale

    def guide(self, plain: LikelihoodGuide, scale: float) -> Guide:
        """Guides as the plain one does, but refined."""
        task = plain.task if self.marginal is None else CalibratedLogits(1.0, self.marginal)
        guide = LikelihoodGuide(plain.model, task, plain.targets, self.scale(scale))
        if (self.first, self.last) == (0, None):
            return guide
        return GuidanceInterval(guide, self.first, self.last)


@dataclass(frozen=True)
class Refined:
    """A model that guides by a refinement.

    Attributes:
        model: what is followed.
        refinement: how.
    """

    model: Model
    refinement: Refinement

    @property
    def name(self) -> str:
        return f"{self.model.name}, refined"

    @property
    def task(self) -> str:
        return self.model.task

    @property
    def experts(self) -> Experts | None:
        return self.model.experts

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()

    def image_seconds(self) -> float:
        return self.model.image_seconds()

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> Guide:
        """Guides a batch towards (N, ...) targets."""
        return self.refinement.guide(self.model.guide(setup, load, targets, 1.0), scale)
