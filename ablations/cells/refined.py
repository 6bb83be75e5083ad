"""What guides by the same model as before, but not at every step, or not always as strongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ablations.cells.guidance import AroundModel, Model
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load
from ppap.compute.precision import Precision
from ppap.diffusion.guide import Guide
from ppap.diffusion.solver import Sampler
from ppap.fast.presets import Preset, refined
from ppap.guidance.guides import LikelihoodGuide
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

    def preset(self, sampler: Sampler, fast: bool, precision: Precision) -> Preset:
        """The same as a preset.

        Raises:
            ValueError: for guidance at some steps only, which is none.
        """
        if (self.first, self.last) != (0, None):
            raise ValueError(f"{self} is no preset: it guides at some steps only")
        return Preset(sampler, fast, precision, self.power or None, self.marginal)

    def guide(self, plain: LikelihoodGuide, scale: float) -> Guide:
        """Guides as the plain one does, but refined."""
        guide: Guide = LikelihoodGuide(plain.model, plain.task, plain.targets, scale)
        guide = refined(guide, self.marginal, self.power or None)
        if (self.first, self.last) != (0, None):
            guide = GuidanceInterval(guide, self.first, self.last)
        return guide


@dataclass(frozen=True)
class Refined(AroundModel):
    """A model that guides by a refinement.

    Attributes:
        model: what is followed.
        refinement: how, or the cell that chooses it.
    """

    model: Model
    refinement: Refinement | Cell

    @property
    def name(self) -> str:
        return f"{self.model.name}, refined"

    def image_seconds(self) -> float:
        return self.model.image_seconds()

    def inputs(self) -> Iterator[Cell]:
        yield from super().inputs()
        if isinstance(self.refinement, Cell):
            yield self.refinement

    def chosen(self, load: Load) -> Refinement:
        """How, read from the choice if it was chosen."""
        if isinstance(self.refinement, Refinement):
            return self.refinement
        return Refinement(**load(self.refinement).meta["refinement"])

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> Guide:
        """Guides a batch towards (N, ...) targets."""
        return self.chosen(load).guide(self.model.guide(setup, load, targets, 1.0), scale)
