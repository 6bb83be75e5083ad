"""Noise-aware models as functions of static weights, which a switch of experts overwrites."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ppap.compute.attributes import Attributes
from ppap.compute.changes import Watch
from ppap.compute.folding import FoldedNetwork
from ppap.compute.precision import cast_to
from ppap.compute.stateless import run_with
from ppap.compute.tracing import laid_out, state_of
from ppap.experts.bank import ExpertBank
from ppap.guidance.guides import IgnoreTimestep, shown
from ppap.predictors.predictor import Function, Predictor

__all__ = ["BankView", "PredictorView", "View", "view_of"]


class View:
    """A noise-aware model as a function of static weights.

    Args:
        model: called as (x_t, timesteps).
        beside: what else a graph through this view depends on, such as a task.

    Attributes:
        generation: rises when graphs that were traced through this view no longer fit.
        attributes: what these graphs hold besides weights.
    """

    def __init__(self, model: nn.Module, *beside: object) -> None:
        self.model = model
        self.generation = 0
        self.attributes = Attributes(model, *beside)
        self._static: dict[str, Tensor] = {}
        self._watch, self._around = Watch(), Watch()
        self._met: list[Tensor] = []
        self._cast: torch.dtype | None = None
        self._stale = True

    def around(self) -> Iterable[Tensor]:
        """What graphs hold as constants, besides attributes."""
        return self._met

    def hold(self, met: Iterable[Tensor]) -> None:
        """Watch tensors that the tracing of a graph met, such as weights that a task has."""
        self._met = [*self._met, *met]
        self._around.changed(self.around)

    def watched(self) -> Iterable[Tensor]:
        """Whatever the static weights are computed from."""
        return state_of(self.model).values()

    def effective(self) -> dict[str, Tensor]:
        """Parameters and buffers that the model runs with now."""
        return state_of(self.model)

    def switch(self, timestep: int, thorough: bool = True) -> None:
        """Make the static weights those that the model has now, at a timestep.

        Args:
            timestep: original timestep of the whole batch.
            thorough: as of :meth:`ppap.compute.changes.Watch.changed`.

        Raises:
            RuntimeError: if the model's attributes were changed too often to trace it each time.
        """
        del timestep
        if self.attributes.changed(thorough):
            if self.attributes.too_often:
                raise RuntimeError("its attributes are changed too often")
            self.begin_anew()
        if self._around.changed(self.around, thorough):
            self.generation += 1
            self._met = []
            self._around.changed(self.around)
        merged = self._cast == self._cast_now()  # an autocast rounds what is merged within it
        if self._watch.changed(self.watched, thorough) or self._stale or not merged:
            self._write(self.effective())
            self._stale, self._cast = False, self._cast_now()

    def _cast_now(self) -> torch.dtype | None:
        some = next(iter(self._static.values()), None)
        return None if some is None else cast_to(some.device)

    def begin_anew(self) -> None:
        """Forget whatever was made of the model as it was."""
        self._static, self._stale = {}, True

    def weights(self) -> list[Tensor]:
        """The static weights, in the order that :meth:`run` expects."""
        return list(self._static.values())

    def run(self, weights: list[Tensor], x_t: Tensor, timesteps: Tensor) -> Any:
        """Predict with these weights."""
        state = dict(zip(self._static, weights, strict=True))
        return run_with(self.model, state, shown(self.model, x_t, copy=False), timesteps)

    def _write(self, values: dict[str, Tensor]) -> None:
        """Into the static buffers, in place, so that whoever holds them sees the new values."""
        if {name: _kind(value) for name, value in values.items()} != {
            name: _kind(value) for name, value in self._static.items()
        }:
            self.generation += 1
            self._static = {
                name: laid_out(value.detach().clone()) for name, value in values.items()
            }
            return
        for name, value in values.items():
            self._static[name].copy_(value)


class PredictorView(View):
    """A predictor, its batch norms folded."""

    def __init__(self, predictor: Predictor, *beside: object) -> None:
        super().__init__(predictor, *beside)
        self.predictor = predictor
        self.folded = FoldedNetwork(predictor.network)
        self.normalised = True

    def around(self) -> Iterable[Tensor]:
        return *super().around(), self.predictor.mean, self.predictor.std

    def begin_anew(self) -> None:
        super().begin_anew()
        self.folded = FoldedNetwork(self.predictor.network)

    def watched(self) -> Iterable[Tensor]:
        return state_of(self.predictor.network).values()

    def effective(self) -> dict[str, Tensor]:
        return self.folded.weights(state_of(self.predictor.network))

    def run(self, weights: list[Tensor], x_t: Tensor, timesteps: Tensor) -> Any:
        del timesteps
        state = dict(zip(self._static, weights, strict=True))
        prepared = self.predictor.prepare(x_t, self.normalised)
        return run_with(self.folded.network, state, prepared)


class BankView(PredictorView):
    """A bank, one expert at a time."""

    def __init__(self, bank: ExpertBank, *beside: object) -> None:
        super().__init__(bank.predictor, *beside)
        self.bank = bank
        self.normalised = bank.normalised
        self._expert = -1

    def switch(self, timestep: int, thorough: bool = True) -> None:
        if self.bank.normalised != self.normalised:
            self.normalised = self.bank.normalised
            self.generation += 1
        number = int(self.bank.ranges.expert_of(torch.tensor([timestep])))
        if number != self._expert:
            self._expert = number
            self._stale = True
        super().switch(timestep, thorough)

    def watched(self) -> Iterable[Tensor]:
        experts = self.bank.experts
        return *super().watched(), *experts.parameters(), *experts.buffers()

    def effective(self) -> dict[str, Tensor]:
        buffers = dict(self.predictor.network.named_buffers())
        return self.folded.weights(buffers | self.bank.merged(self._expert))


def view_of(model: Any, *beside: object) -> View | None:
    """How a guide's model is compiled; None if only it knows what it computes.

    That is so of plain functions, which may do something else at every call, and of classes
    derived from the library's own, which may have overridden anything.

    Args:
        model: the guide's.
        beside: as of :class:`View`.
    """
    if type(model) is ExpertBank:
        return BankView(model, *beside)
    if type(model) is IgnoreTimestep:
        predictor = model.predictor
        if type(predictor) is Predictor and not isinstance(predictor.network, Function):
            return PredictorView(predictor, *beside)
        return None
    if isinstance(model, ExpertBank) or not isinstance(model, nn.Module):
        return None
    return View(model, *beside)


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device
