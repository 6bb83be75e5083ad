"""One training step of all experts on one batch, each on its own share of it.

The step is traced once, at fixed shapes, with the experts as a batch dimension
(:func:`torch.func.vmap`): layers without adapter see all shares at once, convolutions of
different experts become one grouped convolution, matrix products one batched product. What then
runs at every step is a flat list of tensor operations, forward and backward, without autograd.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap.compute.agreement import agree
from ppap.compute.compiler import can_compile, just_in_time
from ppap.compute.precision import Precision, autocast
from ppap.experts.bank import ExpertBank
from ppap.files.checkpoints import one_line

__all__ = ["JointStep"]

logger = logging.getLogger(__name__)


class JointStep:
    """Loss and gradient of all experts of a bank, on shares of equal size.

    While it is in use the experts' state lives in ``parameters`` and in stacked statistics;
    :meth:`write_back` brings it to the bank.

    Args:
        bank: in training mode.
        loss: (predictions (B, ...), targets (B, ...)) -> scalar mean over the batch.
        compile: whether the traced step goes through inductor, which takes up to a minute and
            pays from hundreds of steps on; without a compiler it is traced only, and so it is if
            the compiled step gives another result on its first batch, which is logged.
        precision: in which predictions are computed.

    Attributes:
        parameters: (E, P) all experts' trainable tensors, a line each; ``grad`` is set by a call.
    """

    def __init__(
        self,
        bank: ExpertBank,
        loss: Callable[[Any, Any], Tensor],
        compile: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        self.bank = bank
        self.loss = loss
        self.precision: Precision = precision
        self.compile = compile and can_compile()
        every = [bank.expert(number) for number in range(len(bank))]
        self._shapes = {name: tensor.shape for name, tensor in every[0].tensors().items()}
        lines = [
            torch.cat([tensor.detach().flatten() for tensor in expert.tensors().values()])
            for expert in every
        ]
        self.parameters = nn.Parameter(torch.stack(lines))
        names = every[0].statistics()
        self._statistics = {
            name: torch.stack([expert.statistics()[name] for expert in every]) for name in names
        }
        network = bank.predictor.network
        self._base = {
            name: value.detach()
            for name, value in (*network.named_parameters(), *bank.overwritten.items())
        }
        self._run: Callable[..., tuple[Tensor, Tensor]] | None = None

    def __call__(self, x_t: Tensor, targets: Any) -> float:
        """Set the gradient of the sum of the experts' mean losses.

        Args:
            x_t: (E, b, C, H, W), each expert's share of noisy images.
            targets: (E b, ...) what the loss compares predictions with, of the same form at every
                call.

        Returns:
            The mean loss.
        """
        self.bank.predictor.network.train(bool(self._statistics))
        state = self.parameters.detach(), self._statistics, self._base
        if self._run is None:
            self._run = self._prepared(*state, x_t, targets)
        with torch.no_grad():
            loss, self.parameters.grad = self._run(*state, x_t, targets)
        return float(loss)

    def _prepared(self, *arguments: Any) -> Callable[..., tuple[Tensor, Tensor]]:
        """The step as a graph for such arguments, compiled if it is to be."""
        kept = {name: value.clone() for name, value in self._statistics.items()}
        first, prepare = self.bank.expert(0), self.bank.predictor.prepare
        inputs = prepare(arguments[3][0], self.bank.normalised)
        self.bank.student.prepare(self._base, first.tensors(), first.statistics(), inputs)
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators without a batching rule
            graph = make_fx(_plain(self._step))(*arguments)
        self._restore(kept)  # tracing ran the step, too
        graph.graph.eliminate_dead_code()
        graph.recompile()
        if not self.compile:
            return graph
        compiled = just_in_time(graph)
        try:
            found = self._tried(compiled, arguments, kept)
        except Exception as error:  # noqa: BLE001 whatever a compiler says of a correct graph
            logger.warning("the joint step is traced, not compiled: %s", one_line(error))
            self._restore(kept)
            return graph
        half = self.precision != "fp32"
        expected = self._tried(graph, arguments, kept)
        if not all(agree(a[None], b[None], half) for a, b in zip(found, expected, strict=True)):
            logger.warning("the joint step is traced, not compiled: it would give another result")
            return graph
        return compiled

    def _tried(
        self, run: Callable[..., Any], arguments: tuple[Any, ...], kept: dict[str, Tensor]
    ) -> list[Tensor]:
        """What a step gives and makes of the statistics, by expert; nothing is changed for good."""
        cards = [self.parameters.device] if self.parameters.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(cards):
            loss, gradient = run(*arguments)
        found = [loss[None], *gradient, *(v for s in self._statistics.values() for v in s.clone())]
        self._restore(kept)
        return [value.reshape(-1) for value in found]

    def _restore(self, kept: dict[str, Tensor]) -> None:
        for name, value in kept.items():
            self._statistics[name].copy_(value)

    def _step(
        self,
        lines: Tensor,
        statistics: dict[str, Tensor],
        base: dict[str, Tensor],
        x_t: Tensor,
        targets: Any,
    ) -> tuple[Tensor, Tensor]:
        bank = self.bank

        def of_one(line: Tensor, own_statistics: dict[str, Tensor], share: Tensor) -> Tensor:
            prepared = bank.predictor.prepare(share, bank.normalised)
            output = bank.student.run(base, self._named(line), own_statistics, prepared)
            assert isinstance(output, Tensor)
            return output

        with torch.enable_grad():
            lines = lines.detach().requires_grad_()
            with autocast(self.precision, x_t.device):
                predictions = vmap(of_one, randomness="different")(lines, statistics, x_t)
                loss = self.loss(predictions.flatten(0, 1), targets)
            (gradient,) = torch.autograd.grad(loss * len(lines), lines)
        return loss.detach(), gradient

    def _named(self, line: Tensor) -> dict[str, Tensor]:
        parts = torch.split(line, [shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    @torch.no_grad()
    def write_back(self) -> None:
        """Give every expert its line and its statistics."""
        for number in range(len(self.bank)):
            expert = self.bank.expert(number)
            for name, value in self._named(self.parameters[number]).items():
                expert.tensors()[name].copy_(value)
            for name, values in self._statistics.items():
                expert.statistics()[name].copy_(values[number])


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function, for the tracer counts a method's object among its arguments."""

    def function(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return method(a, b, c, d, e)

    return function
