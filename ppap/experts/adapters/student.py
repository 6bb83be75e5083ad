"""How a network predicts under an adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ppap.compute.stateless import run_with
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Part, Tensors

__all__ = ["Student", "Wrapping", "in_order", "set_mode"]


def in_order(parts: Iterable[Part]) -> list[Part]:
    """Low-rank updates last: an own copy of the weight that came after would undo them."""
    return sorted(parts, key=lambda part: isinstance(part, Lora))


def set_mode(network: nn.Module, training: bool, statistics: Collection[str]) -> None:
    """Training mode if experts keep statistics; norms whose statistics they don't keep evaluate.

    In training these would normalise by their batch, or an image, and in use by what the frozen
    predictor has: a norm whose statistics were absorbed beside one whose could not be, and an
    instance norm that tracks its statistics.

    Args:
        network: the frozen predictor's, or one with layers in place of some of its own.
        training: whether it is wanted; without statistics it is evaluation all the same.
        statistics: names of the buffers that an expert keeps for itself.
    """
    network.train(training and bool(statistics))
    if not network.training:
        return
    for name, layer in network.named_modules():
        tracked = layer._buffers.get("running_mean") is not None
        if tracked and f"{name}.running_mean" not in statistics:
            layer.eval()


class Student:
    """How a network and an adapter's tensors make predictions.

    Args:
        network: the frozen predictor's.
        parts: of the adapter.
    """

    def __init__(self, network: nn.Module, parts: tuple[Part, ...]) -> None:
        self.network = network
        self.parts = parts

    def effective(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
        """The network's parameters under the adapter, by name; see :meth:`Adapter.effective`."""
        weights = dict(base)
        for part in in_order(self.parts):
            part.apply(weights, own)
        return weights

    def prepare(
        self,
        base: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
    ) -> None:
        """Look at the first real input of :meth:`run`, before it is traced."""

    def run(
        self,
        base: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
    ) -> Any:
        """Predict, differentiably in the adapter's tensors.

        Args:
            base: the frozen network's parameters, by name.
            own: the adapter's tensors.
            buffers: that the adapter keeps for itself; updated in place in training mode.
            inputs: what the network takes.
        """
        state = self.effective(base, own) | dict(buffers)
        return run_with(self.network, state, inputs)


@runtime_checkable
class Wrapping(Part, Protocol):
    """A part whose layers have a forward of their own, which training must run."""

    def student(self, network: nn.Module, parts: tuple[Part, ...]) -> Student:
        """Runs the network with all parts of the adapter, this one among them."""
        ...
