"""The compiled training step of one expert, the same graph for each in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppap.compute.compiler import can_compile
from ppap.compute.precision import Precision
from ppap.experts.bank import ExpertBank
from ppap.experts.compiled_step import Run, Step, compiled, laid_out_like, predicted
from ppap.experts.expert import Expert

__all__ = ["ExpertStep"]


class ExpertStep:
    """Loss and gradient of one expert of a bank, whichever it is: its tensors are inputs.

    Args:
        bank: in training mode.
        loss: (predictions (B, ...), targets (B, ...)) -> scalar mean over the batch.
        precision: in which predictions are computed.
    """

    def __init__(
        self,
        bank: ExpertBank,
        loss: Callable[[Any, Any], Tensor],
        precision: Precision = "fp32",
    ) -> None:
        self.bank = bank
        self._step = Step(bank, partial(predicted, bank), loss, precision)
        self._run: Run | None = None if can_compile() else self._step
        self._kind: list[object] = []
        self._used: list[int] = []

    @torch.no_grad()
    def __call__(self, expert: Expert, x_t: Tensor, targets: Any) -> Tensor:
        """Set the gradients of an expert's loss, and move its statistics.

        Args:
            expert: of the bank.
            x_t: (B, C, H, W) noisy images.
            targets: (B, ...) what the loss compares predictions with.

        Returns:
            The loss, on its device.
        """
        parameters, statistics = list(expert.tensors().values()), list(expert.statistics().values())
        inputs = self._step.inputs(parameters, statistics, x_t, targets)
        kind = self._step.kind(inputs)
        attributes = self._step.attributes
        if self._run not in (None, self._step) and attributes.changed(thorough=False):
            self._run = self._step if attributes.too_often else None
        if self._run is None:
            self._step.show(x_t)
            self._run = compiled(self._step, inputs, self._step, "the step") or self._step
            self._kind, self._used = kind, self._step.used
        fits = self._run is not self._step and kind == self._kind
        found = list((self._run if fits else self._step)(*inputs))
        loss, moved = found[0], found[1 : 1 + len(statistics)]
        used = self._used if fits else self._step.used
        for value, new in zip(statistics, moved, strict=True):
            value.copy_(new)
        for parameter in parameters:
            parameter.grad = None
        for place, gradient in zip(used, found[1 + len(statistics) :], strict=True):
            parameter = parameters[place]
            if parameter.requires_grad:
                parameter.grad = laid_out_like(gradient, parameter)
        return loss
