"""A network whose samples run under different experts, in one pass.

A batch of mixed timesteps could be cut by expert and each part run on its own. Here the network
runs once instead: layers that no expert changes see the whole batch, the others are those of
:mod:`ppap.experts.grouped_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ppap.compute.copies import sharing_copy
from ppap.compute.stateless import run_with
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms
from ppap.experts.adapters.student import set_mode
from ppap.experts.grouped_layers import (
    GroupedBatchNorm,
    GroupedLayer,
    Rows,
    Stack,
    UngroupableError,
    grouped_kind,
)

__all__ = ["GroupedNetwork"]

PARTS = (Lora, Biases, Norms, Head, Full)


class GroupedNetwork:
    """Runs a network on batches whose rows belong to different experts.

    Args:
        network: the frozen predictor's; its parameters are shared, not copied.
        adapter: of all experts.
        names: of one expert's trainable tensors.
        statistics: names of the buffers that an expert keeps for itself.

    Raises:
        UngroupableError: if the adapter changes something that has no grouped form: a peft
            method, or a parameter of a layer other than a linear one, a convolution or a norm.
    """

    def __init__(
        self,
        network: nn.Module,
        adapter: Adapter,
        names: Sequence[str],
        statistics: Sequence[str] = (),
    ) -> None:
        if not all(isinstance(part, PARTS) for part in adapter.parts):
            raise UngroupableError(f"{adapter} has a part that cannot be grouped")
        self._network = sharing_copy(network)
        self._names = list(names)
        self._layers: dict[str, GroupedLayer] = {}
        places = _places(self._network)
        for path in dict.fromkeys(key.rpartition(".")[0] for key in (*names, *statistics)):
            layer = dict(network.named_modules()).get(path)
            kind = None if layer is None else grouped_kind(layer)
            if layer is None or kind is None:
                raise UngroupableError(f"{path or 'the network itself'} cannot be grouped")
            weight, lora = layer.weight, adapter.lora_of(path)
            scale = lora.scale(weight) if lora and isinstance(weight, Tensor) else 1.0
            self._layers[path] = kind(layer, scale)
            for place in places[id(self._network.get_submodule(path))]:
                self._network.set_submodule(place, self._layers[path])

    def run(
        self,
        base: Mapping[str, Tensor],
        own: Sequence[Mapping[str, Tensor]],
        statistics: Sequence[Mapping[str, Tensor]],
        inputs: Tensor,
        experts: Tensor,
        training: bool = False,
    ) -> Tensor:
        """Predict each row under its expert, differentiably in inputs and experts' tensors.

        Args:
            base: the frozen network's parameters and buffers, by name.
            own: every expert's trainable tensors, by name.
            statistics: every expert's buffers, by name; updated in place in training.
            inputs: (B, ...) what the network takes.
            experts: (B,) int64 expert of each row, in any order.
            training: whether batch norms use and update their statistics, each expert's over
                its own rows.

        Returns:
            (B, ...) predictions, in the order of the inputs.

        Raises:
            UngroupableError: if an adapted layer sees another batch than the network's.
        """
        order = experts.argsort(stable=True)
        totals = experts.bincount().tolist()
        counted = tuple((expert, rows) for expert, rows in enumerate(totals) if rows)
        rows = Rows(experts[order], counted)
        with self._set(rows, self._stack(own), statistics, training):
            output = run_with(self._network, base, inputs[order])
        assert isinstance(output, Tensor)
        return output[order.argsort()]

    def _stack(self, own: Sequence[Mapping[str, Tensor]]) -> Stack:
        """(E, ...) of every tensor: one concatenation and one split, whatever their number."""
        if not self._names:
            return {}
        shapes = [own[0][name].shape for name in self._names]
        flat = torch.cat([expert[name].reshape(-1) for expert in own for name in self._names])
        parts = torch.split(flat.view(len(own), -1), [shape.numel() for shape in shapes], 1)
        named = zip(self._names, parts, shapes, strict=True)
        return {name: part.view(len(own), *shape) for name, part, shape in named}

    @contextmanager
    def _set(
        self,
        rows: Rows,
        stack: Stack,
        statistics: Sequence[Mapping[str, Tensor]],
        training: bool,
    ) -> Iterator[None]:
        set_mode(self._network, training, statistics[0] if statistics else ())
        for layer in self._layers.values():
            layer.rows = rows
        for name, value in stack.items():
            path, _, kind = name.rpartition(".")
            layer = self._layers[path]
            replaced = layer._parameters.get(kind)
            layer.own[kind] = value if replaced is None else value.to(replaced.dtype)
        if statistics:
            for path, layer in self._layers.items():
                kept_here = f"{path}.running_mean" in statistics[0]
                if kept_here and isinstance(layer, GroupedBatchNorm):
                    kinds = [name for name, _ in layer.named_buffers(recurse=False)]
                    layer.statistics = [
                        {kind: kept[f"{path}.{kind}"] for kind in kinds} for kept in statistics
                    ]
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.own, layer.statistics = {}, ()
                del layer.rows


def _places(network: nn.Module) -> dict[int, list[str]]:
    """All names of each layer, by its identity: some networks call one under several."""
    places: dict[int, list[str]] = {}
    for name, layer in network.named_modules(remove_duplicate=False):
        places.setdefault(id(layer), []).append(name)
    return places
