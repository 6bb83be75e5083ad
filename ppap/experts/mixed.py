"""Batches whose samples belong to different experts: in one pass if that gives the same.

The grouped pass (:mod:`ppap.experts.grouped`) is another form of the network, which does not hold
for every one: layers whose weights are read instead of called, hooks that write into the original,
or a first dimension that is no batch make it another function. It is therefore compared with the
experts one by one, once, and dropped where it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppap.compute.agreement import FirstUse, computes_in_half, disturbed
from ppap.compute.attributes import Attributes
from ppap.compute.stateless import copied
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.student import Student, set_mode
from ppap.experts.expert import Expert
from ppap.experts.grouped import GroupedNetwork
from ppap.experts.grouped_layers import UngroupableError
from ppap.files.checkpoints import one_line

__all__ = ["MixedPass", "in_order"]

State = dict[str, Tensor]

logger = logging.getLogger(__name__)


class MixedPass:
    """A network under several experts at once, if it has such a form.

    Args:
        network: the frozen predictor's.
        student: how it predicts under the adapter.
        adapter: of all experts.
        expert: any of them, for the names of its tensors.
    """

    def __init__(
        self, network: nn.Module, student: Student, adapter: Adapter, expert: Expert
    ) -> None:
        self.network = network
        self.student = student
        what = f"the grouped pass of {type(network).__name__}"
        self.check = FirstUse(what, logger, computes_in_half(network))
        self.grouped: GroupedNetwork | None = None
        self._structure = list(network.modules())
        self._attributes = Attributes(network)
        self._attributes.changed()
        try:
            self.grouped = GroupedNetwork(
                network, adapter, list(expert.tensors()), list(expert.statistics())
            )
        except UngroupableError:
            pass
        except Exception as error:  # noqa: BLE001 whatever a network does when it is copied
            self.check.drop(f"{type(error).__name__}: {one_line(error)}")

    def fits(self, network: nn.Module, thorough: bool = False) -> bool:
        """Whether a network is still the one that this was made for, layer by layer.

        Args:
            network: the predictor's.
            thorough: whether attributes of the layers are looked at.
        """
        if network is not self.network or self._structure != list(network.modules()):
            return False
        return not (thorough and self._attributes.changed())

    def run(
        self,
        base: State,
        experts: Sequence[Expert],
        inputs: Tensor,
        chosen: Tensor,
        training: bool,
    ) -> Tensor | None:
        """Predict each row under its expert, in one pass; None if that cannot be.

        Args:
            base: the frozen network's parameters, by name.
            experts: all of them.
            inputs: (B, ...) what the network takes.
            chosen: (B,) int64 expert of each row, in any order.
            training: whether batch norms use and update their statistics.
        """
        if self.grouped is None or self.check.dropped:
            return None
        grouped = self.grouped
        buffers = dict(self.network.named_buffers())
        own = [expert.tensors() for expert in experts]
        kept = [expert.statistics() for expert in experts]
        for mode in (False, True) if training else (False,):
            if not self._agrees(base, own, kept, inputs, chosen, mode):
                return None
        try:
            return grouped.run(buffers | base, own, kept, inputs, chosen, training)
        except Exception as error:  # noqa: BLE001 of other inputs than the first
            self.check.drop(f"{type(error).__name__}: {one_line(error)}")
            return None

    @torch.inference_mode(False)
    def _agrees(
        self,
        base: State,
        own: Sequence[State],
        kept: Sequence[State],
        inputs: Tensor,
        chosen: Tensor,
        training: bool,
    ) -> bool:
        """Whether the grouped pass gives what the experts do one by one.

        They are compared moved apart from each other, for untrained experts would all agree.
        """
        assert self.grouped is not None
        grouped, student = self.grouped, self.student
        chosen = chosen.clone()  # for it may have been made in inference mode
        known = self.check.compared(training)
        counted: list[str] = []
        apart = [] if known else [disturbed(tensors, n) for n, tensors in enumerate(own)]

        def together(x: Tensor) -> Tensor:
            state = copied(dict(self.network.named_buffers())) | base
            return grouped.run(state, apart, [copied(k) for k in kept], x, chosen, training)

        def one_by_one(x: Tensor) -> Tensor:
            set_mode(self.network, training, kept[0])
            present = sorted(set(chosen.tolist()))
            rows = [(chosen == number).nonzero()[:, 0] for number in present]
            parts = []
            for number, some in zip(present, rows, strict=True):
                parts.append(student.run(base, apart[number], copied(kept[number]), x[some]))
                counted[:] = self._attributes.settle()  # all of them may be set by the first call
            return torch.cat(parts)[torch.cat(rows).argsort()]

        agrees = self.check.allows(together, one_by_one, inputs, training)
        if agrees and counted:
            self.check.drop(f"the network changes {', '.join(counted)} in every call")
        return not self.check.dropped


def in_order(parts: tuple[Any, ...], places: Tensor) -> Any:
    """The rows that several experts predict, in the order of the batch; what has none as it is.

    Raises:
        TypeError: for other things than numbers, words and tensors of a row for each image.
    """
    first = parts[0]
    tensors = all(isinstance(part, Tensor) and part.ndim for part in parts)
    if tensors and sum(map(len, parts)) == len(places):
        return torch.cat(parts)[places]
    if first is None or (isinstance(first, int | float | str) and parts.count(first) == len(parts)):
        return first
    got = f"a tensor {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
    raise TypeError(
        "predictions by several experts are put together from tensors (B, ...), or tuples and "
        f"dictionaries of them, got {got}; ask for images of one expert at a time, or have the "
        "network return what has a row for each image"
    )
