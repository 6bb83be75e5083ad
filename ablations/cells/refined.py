"""What guides by the same model as before, but not at every step, or not always as strongly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ablations.cells.guidance import AroundModel, Model
from ablations.cells.setup import Setup
from ablations.machine.cell import Load
from ppap.diffusion.guide import Guide
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.methods.elucd import CalibratedLogits
from ppap.guidance.wrappers import GuidanceInterval, SignalWeighted

__all__ = ["Refined", "Refinement"]


@dataclass(frozen=True)
class Refinement:
    """When and how a model guides.

    Attributes:
        first: the lowest timestep at which it does.
        last: the highest one; None for no bound.
        marginal: of :class:`ppap.guidance.methods.elucd.CalibratedLogits`, in place of the task's
            own likelihood; None for that. For classes only.
        power: of the weight by which it is held back in the noise; see
            :class:`ppap.guidance.wrappers.SignalWeighted`.
    """

    first: int = 0
    last: int | None = None
    marginal: float | None = None
    power: float = 0.0

    def suits(self, task: str) -> bool:
        """Whether it can guide towards a task: calibrated logits are of classes."""
        return task == "class" or self.marginal is None

    def guide(self, plain: LikelihoodGuide, scale: float) -> Guide:
        """Guides as the plain one does, but refined."""
        task = plain.task if self.marginal is None else CalibratedLogits(1.0, self.marginal)
        guide: Guide = LikelihoodGuide(plain.model, task, plain.targets, scale)
        if self.power:
            guide = SignalWeighted(guide, self.power)
        if (self.first, self.last) != (0, None):
            guide = GuidanceInterval(guide, self.first, self.last)
        return guide


@dataclass(frozen=True)
class Refined(AroundModel):
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

    def image_seconds(self) -> float:
        return self.model.image_seconds()

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> Guide:
        """Guides a batch towards (N, ...) targets."""
        return self.refinement.guide(self.model.guide(setup, load, targets, 1.0), scale)
