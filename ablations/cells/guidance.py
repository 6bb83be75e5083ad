"""What guides samples: predictors, with or without experts, and how strongly each of them does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ablations.cells.experts import Experts
from ablations.cells.predictors import Pretrained, guide_seconds, load_predictor, predictor_name
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell, Load, describe
from ablations.settings.setting import device
from ppap.compute.recent import Recent
from ppap.diffusion.stepping import AnyGuide
from ppap.guidance.guides import IgnoreTimestep, LikelihoodGuide, NoiseAwareModel

__all__ = ["AroundModel", "Guidance", "Guiding", "Model"]

_recent: Recent[str, NoiseAwareModel] = Recent(2)
"""On the fast path, which has graphs of a model as long as that is the same object: one scale of a
curve after another is drawn under the same experts."""


class Guiding(Protocol):
    """Whatever guides samples: frozen, with fields that a cell may have.

    Its guide is given targets and a scale, and may be any of :mod:`ppap.guidance`.
    """

    @property
    def name(self) -> str:
        """As the progress line has it."""
        ...

    @property
    def task(self) -> str:
        """Of the setting, whose targets it follows, and whose rule selects its scale."""
        ...

    @property
    def experts(self) -> Experts | None:
        """That are trained for it; None if nothing is."""
        ...

    def inputs(self) -> Iterator[Cell]:
        """The cells that it is made of."""
        ...

    def image_seconds(self) -> float:
        """Expected time of one gradient of one image."""
        ...

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float, /) -> AnyGuide:
        """Guides a batch towards (N, ...) targets."""
        ...


@dataclass(frozen=True)
class Model:
    """What guides: an off-the-shelf predictor as it is, or with experts.

    Attributes:
        predictor: of the setting, by name, one trained here, or a published noise-aware
            classifier by the method that it stands for.
        experts: of the predictor; None to show it noisy images as it is.
        task: of the setting, by name.
    """

    predictor: str | Pretrained
    experts: Experts | None = None
    task: str = "class"

    def inputs(self) -> Iterator[Cell]:
        """The cells that it is made of."""
        if isinstance(self.predictor, Pretrained):
            yield self.predictor
        if self.experts is not None:
            yield from self.experts.bank_inputs()

    @property
    def name(self) -> str:
        """Of the predictor, as in the tables."""
        return predictor_name(self.predictor)

    def image_seconds(self) -> float:
        """Expected time of one gradient of one image."""
        return guide_seconds(self.predictor)

    def guide(self, setup: Setup, load: Load, targets: Tensor, scale: float) -> LikelihoodGuide:
        """Guides a batch towards (N, ...) targets."""
        task = setup.load().tasks[self.task].task
        return LikelihoodGuide(self.predict(setup, load), task, targets, scale)

    def predict(self, setup: Setup, load: Load) -> Any:
        """(x_t, timesteps) -> prediction; the model itself."""
        if not setup.fast:
            return self._made(setup, load)
        key = json.dumps([describe(setup), describe(self)], sort_keys=True)
        return _recent.get(key, lambda: self._made(setup, load))

    def _made(self, setup: Setup, load: Load) -> NoiseAwareModel:
        setting = setup.load()
        if self.predictor in setting.noisy:
            return setting.noisy[str(self.predictor)]().to(device())
        if self.experts is None:
            return IgnoreTimestep(load_predictor(setup, self.predictor, load).to(device()))
        return self.experts.bank(load)


class AroundModel:
    """What guides by a model, in a way of its own: it has the model's task, experts and cells."""

    model: Model

    @property
    def task(self) -> str:
        return self.model.task

    @property
    def experts(self) -> Experts | None:
        return self.model.experts

    def inputs(self) -> Iterator[Cell]:
        yield from self.model.inputs()


@dataclass(frozen=True)
class Guidance:
    """A model, and how strongly it guides.

    Attributes:
        model: what guides.
        scale: a number, or the cell that selects it, whose artifact holds ``scale``.
    """

    model: Guiding
    scale: float | Cell

    def inputs(self) -> Iterator[Cell]:
        """The cells that it is made of."""
        yield from self.model.inputs()
        if isinstance(self.scale, Cell):
            yield self.scale

    def selected_scale(self, load: Load) -> float:
        """The scale, read from its selection if it was selected."""
        if isinstance(self.scale, Cell):
            return float(load(self.scale).meta["scale"])
        return self.scale
