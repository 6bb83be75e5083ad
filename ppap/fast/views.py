"""Noise-aware models as functions of static weights, which a switch of experts overwrites."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppap.compute.folding import FoldedNetwork
from ppap.compute.tracing import laid_out, state_of
from ppap.experts.bank import ExpertBank
from ppap.guidance.guides import IgnoreTimestep
from ppap.predictors.predictor import Function, Predictor

__all__ = ["BankView", "PredictorView", "View", "view_of"]

Weights = dict[str, Tensor]


class View:
    """A noise-aware model as a function of static weights.

    Args:
        model: called as (x_t, timesteps).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._static: Weights = {}

    def effective(self) -> Weights:
        """Parameters and buffers that the model runs with now."""
        return state_of(self.model)

    def switch(self, timestep: int) -> None:
        """Make the static weights those of a timestep."""
        if not self._static:
            self._write(self.effective())

    def weights(self) -> list[Tensor]:
        """The static weights, in the order that :meth:`run` expects."""
        return list(self._static.values())

    def run(self, weights: list[Tensor], x_t: Tensor, timesteps: Tensor) -> Any:
        """Predict with these weights."""
        state = dict(zip(self._static, weights, strict=True))
        return functional_call(self.model, state, (x_t, timesteps))

    def _write(self, values: Weights) -> None:
        """Into the static buffers, in place, so that whoever holds them sees the new values."""
        for name, value in values.items():
            if name not in self._static:
                self._static[name] = laid_out(value.detach().clone())
            else:
                self._static[name].copy_(value)


class PredictorView(View):
    """A predictor, its batch norms folded."""

    def __init__(self, predictor: Predictor, normalised: bool = True) -> None:
        super().__init__(predictor)
        self.predictor = predictor
        self.normalised = normalised
        self.folded = FoldedNetwork(predictor.network)

    def effective(self) -> Weights:
        return self.folded.weights(state_of(self.predictor.network))

    def run(self, weights: list[Tensor], x_t: Tensor, timesteps: Tensor) -> Any:
        del timesteps
        state = dict(zip(self._static, weights, strict=True))
        prepared = self.predictor.prepare(x_t, self.normalised)
        return functional_call(self.folded.network, state, (prepared,))


class BankView(PredictorView):
    """A bank, one expert at a time."""

    def __init__(self, bank: ExpertBank) -> None:
        super().__init__(bank.predictor, bank.normalised)
        self.bank = bank
        self._now: tuple[int, ...] = ()

    def switch(self, timestep: int) -> None:
        number = int(self.bank.ranges.expert_of(torch.tensor([timestep])))
        expert = self.bank.expert(number)
        tensors = (*expert.parameters(), *expert.buffers())
        now = (number, *(tensor._version for tensor in tensors))  # it may have trained meanwhile
        if now != self._now:
            buffers = dict(self.bank.predictor.network.named_buffers())
            self._write(self.folded.weights(buffers | self.bank.merged(number)))
            self._now = now


def view_of(model: Any) -> View | None:
    """How a guide's model is compiled; None if it is nothing that has weights."""
    if isinstance(model, ExpertBank):
        return BankView(model)
    if isinstance(model, IgnoreTimestep):
        predictor = model.predictor
        # What a plain function does from call to call cannot be known: it is not traced.
        known = isinstance(predictor, Predictor) and not isinstance(predictor.network, Function)
        return PredictorView(cast(Predictor, predictor)) if known else None
    return View(model) if isinstance(model, nn.Module) else None
