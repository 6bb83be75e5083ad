"""One training step of all experts on one batch, each on its own share of it.

The step is traced once, at fixed shapes, with the experts as a batch dimension
(:func:`torch.func.vmap`): layers without adapter see all shares at once, convolutions of
different experts become one grouped convolution, matrix products one batched product. What then
runs at every step is a flat list of tensor operations, forward and backward, without autograd.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap.compute.compiler import can_compile
from ppap.compute.precision import Precision
from ppap.compute.tracing import graph_of
from ppap.experts.bank import ExpertBank
from ppap.experts.compiled_step import (
    Inputs,
    Run,
    Step,
    as_function,
    compiled,
    laid_out_like,
    parted,
    predicted,
    put_together,
    tried,
)
from ppap.files.checkpoints import one_line

__all__ = ["JointStep"]

logger = logging.getLogger(__name__)


class JointStep:
    """Loss and gradient of all experts of a bank, on shares of equal size.

    While it is in use the experts' state lives in ``parameters`` and in stacked statistics;
    :meth:`write_back` brings it to the bank. A loss or network whose attributes are changed between
    steps is traced anew, and is run as it is if they change too often, or in every call.

    Args:
        bank: in training mode.
        loss: (predictions (B, ...), targets (B, ...)) -> scalar mean over the batch.
        compile: whether the step goes through inductor, which takes up to a minute for the first
            process and pays from hundreds of steps on; without a compiler it is traced only, and so
            it is if the compiled step gives another result on its first batch, which is logged.
        precision: in which predictions are computed.

    Attributes:
        parameters: (E, ...) each, the experts' trainable tensors; ``grad`` is set by a call, and
            stays None for what is frozen or no prediction depends on.
    """

    def __init__(
        self,
        bank: ExpertBank,
        loss: Callable[[Any, Any], Tensor],
        compile: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        self.bank = bank
        self.compile = compile and can_compile()
        # The loss is a mean over all experts; each follows the gradient of its own.
        self._step = Step(bank, self._predict, loss, precision, weight=len(bank))
        every = [bank.expert(number) for number in range(len(bank))]
        self.parameters = [
            nn.Parameter(
                torch.stack([expert.tensors()[name].detach() for expert in every]),
                every[0].tensors()[name].requires_grad,
            )
            for name in self._step.names
        ]
        self._statistics = [
            torch.stack([expert.statistics()[name] for expert in every])
            for name in self._step.statistics
        ]
        self._run: Run | None = None

    @torch.no_grad()
    def __call__(self, x_t: Tensor, targets: Any) -> float:
        """Set the gradient of the sum of the experts' mean losses.

        Args:
            x_t: (E, b, C, H, W), each expert's share of noisy images.
            targets: (E b, ...) what the loss compares predictions with, of the same form at every
                call.

        Returns:
            The mean loss.

        Raises:
            ValueError: at the first call, for a network that knows no batch of weights.
        """
        inputs = self._step.inputs(self.parameters, self._statistics, x_t, targets)
        attributes = self._step.attributes
        if self._run not in (None, self._untraced) and attributes.changed(thorough=False):
            self._run = self._untraced if attributes.too_often else None
        if self._run is None:
            self._run = self._prepared(inputs)
        loss, *found = self._run(*inputs)
        for value, moved in zip(self._statistics, found, strict=False):
            value.copy_(moved)
        gradients = found[len(self._statistics) :]
        for place, gradient in zip(self._step.used, gradients, strict=True):
            parameter = self.parameters[place]
            if parameter.requires_grad:
                parameter.grad = laid_out_like(gradient, parameter)
        return float(loss)

    def _prepared(self, inputs: Inputs) -> Run:
        """The step as a graph for such inputs, compiled if it is to be."""
        self._step.show(inputs[3][0])
        attributes = self._step.attributes
        attributes.changed()
        with _batched():
            graph = self._traced(inputs)
            attributes.settle()  # what a first call sets once and for all
            tried(self._step, inputs)
            if counted := attributes.settle():
                names = ", ".join(counted)
                logger.warning("the joint step is not traced: every call changes %s", names)
                return self._untraced
            graph.graph.eliminate_dead_code()
            graph.recompile()

            def traced(*arguments: Any) -> list[Tensor]:
                found: list[Tensor] = graph(*arguments)
                return found

            if self.compile:
                return compiled(self._step, inputs, traced, "the joint step") or traced
        return traced

    def _untraced(self, *arguments: Any) -> list[Tensor]:
        """The step as it is."""
        with _batched():
            return self._step(*arguments)

    def _traced(self, inputs: Inputs) -> fx.GraphModule:
        try:
            return graph_of(as_function(self._step), inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of layers that know no batch of weights, such as an LSTM
            kind = type(self.bank.predictor.network).__name__
            raise ValueError(
                f"the experts of {kind} cannot be trained together ({one_line(error)}); choose "
                "order='ascending'"
            ) from error

    def _predict(
        self,
        tensors: dict[str, Tensor],
        statistics: dict[str, Tensor],
        base: dict[str, Tensor],
        x_t: Tensor,
    ) -> Any:
        """(E b, ...) of (E, b, C, H, W)."""
        forms = []

        def of_one(own: dict[str, Tensor], kept: dict[str, Tensor], share: Tensor) -> Any:
            found, form = parted(predicted(self.bank, own, kept, base, share))
            forms.append(form)
            return found

        found = vmap(of_one, randomness="different")(tensors, statistics, x_t)
        joined = [part.flatten(0, 1) if part.ndim > 1 else part for part in found]
        return put_together(joined, forms[0])

    @torch.no_grad()
    def write_back(self) -> None:
        """Give every expert its tensors and its statistics."""
        for number in range(len(self.bank)):
            expert = self.bank.expert(number)
            for name, stacked in zip(self._step.names, self.parameters, strict=True):
                expert.tensors()[name].copy_(stacked[number])
            for name, values in zip(self._step.statistics, self._statistics, strict=True):
                expert.statistics()[name].copy_(values[number])


@contextmanager
def _batched() -> Iterator[None]:
    """Within it attention takes a batch of weights, and what has no rule for one is quiet."""
    quick = torch.backends.mha.get_fastpath_enabled()  # of torch's own layers; it has no gradient
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(quick)
