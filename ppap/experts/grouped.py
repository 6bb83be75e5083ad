"""A network whose samples run under different experts, in one pass.

A batch of mixed timesteps could be cut by expert and each part run on its own. Here the network
runs once instead: layers that no expert changes see the whole batch, a LoRA on a linear layer is
one grouped operation (:func:`ppap_kernels.grouped_lora_linear`), biases and norms are looked up
per sample, and only what has no shared part, such as a convolution whose merged weights differ,
goes through its experts one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ppap_kernels import grouped_lora_linear
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms

__all__ = ["GroupedNetwork", "UngroupableError"]

PARTS = (Lora, Biases, Norms, Head, Full)
Stack = dict[str, Tensor]


class UngroupableError(ValueError):
    """The network or its adapter has no form in which rows of several experts go together."""


@dataclass(frozen=True)
class _Rows:
    """Which expert a batch's rows, sorted by expert, belong to.

    Attributes:
        index: (B,) expert of each row, ascending.
        counts: (expert, rows) of those that have any.
    """

    index: Tensor
    counts: tuple[tuple[int, int], ...]

    def parts(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each present expert with its rows of ``x``."""
        sizes = [rows for _, rows in self.counts]
        return zip((expert for expert, _ in self.counts), torch.split(x, sizes), strict=True)

    def of(self, table: Tensor, x: Tensor, channels: int) -> Tensor:
        """Each row's (F,) line of an (E, F) table, shaped to broadcast with ``x``."""
        shape = [len(self.index), *[1] * (x.ndim - 1)]
        shape[channels] = table.shape[1]
        return table.index_select(0, self.index).view(shape)


class _Layer(nn.Module):
    """A layer of the network, run under each row's own expert.

    It shares the original's parameters under their own names. ``own`` and ``rows`` are set for
    the length of a call.
    """

    def __init__(self, layer: nn.Module, scale: float) -> None:
        super().__init__()
        for name, parameter in layer._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.options: Any
        object.__setattr__(self, "options", layer)  # not as a submodule
        self.scale = scale
        self.own: Stack = {}
        self.statistics: Sequence[Mapping[str, Tensor]] = ()
        self.rows: _Rows

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != len(self.rows.index):
            raise UngroupableError(
                f"a layer sees {len(x)} rows for a batch of {len(self.rows.index)}; "
                "only layers that keep the batch as their first dimension can be grouped"
            )
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """The layer's output for rows in the order of their experts."""
        raise NotImplementedError

    def values(self, name: str) -> Sequence[Tensor | None]:
        """A parameter of every expert; the shared one where they have none."""
        if name in self.own:
            return self.own[name].unbind()
        return [getattr(self, name)] * (1 + max(expert for expert, _ in self.rows.counts))

    def update(self) -> Tensor:
        """(E, rows, columns): scale B A of every expert."""
        return self.scale * torch.bmm(self.own["lora_B"], self.own["lora_A"])

    def with_update(self) -> None:
        """Turn a low-rank update into own weights."""
        if "lora_A" in self.own:
            weight = self.own.get("weight", self.weight)
            assert isinstance(weight, Tensor)
            shape = (-1, *weight.shape[-self.options.weight.ndim :])
            self.own["weight"] = weight + self.update().view(shape)


class _Linear(_Layer):
    def run(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.own.get("bias")
        assert isinstance(weight, Tensor)
        if "weight" in self.own:
            self.with_update()
            weights, biases = self.values("weight"), self.values("bias")
            parts = [F.linear(part, weights[e], biases[e]) for e, part in self.rows.parts(x)]  # type: ignore[arg-type]
            return torch.cat(parts)
        shared = self.bias if bias is None else None
        assert shared is None or isinstance(shared, Tensor)
        if "lora_A" in self.own:
            a, b = self.own["lora_A"], self.own["lora_B"]
            y = grouped_lora_linear(x, weight, a, b, self.rows.index, shared, self.scale)
        else:
            y = F.linear(x, weight, shared)
        return y if bias is None else y + self.rows.of(bias, y, -1)


class _Conv2d(_Layer):
    def run(self, x: Tensor) -> Tensor:
        about = self.options
        self.with_update()
        weights, biases = self.values("weight"), self.values("bias")
        geometry = (about.stride, about.padding, about.dilation, about.groups)
        if "weight" not in self.own:
            y = F.conv2d(x, weights[0], None, *geometry)  # type: ignore[arg-type]
            return y + self.rows.of(self.own["bias"], y, 1)
        parts = [
            F.conv2d(part, weights[e], biases[e], *geometry)  # type: ignore[arg-type]
            for e, part in self.rows.parts(x)
        ]
        return torch.cat(parts)


class _BatchNorm(_Layer):
    def run(self, x: Tensor) -> Tensor:
        weights, biases = self.values("weight"), self.values("bias")
        if self.training:
            parts = []
            for e, part in self.rows.parts(x):
                kept = self.statistics[e]
                kept["num_batches_tracked"].add_(1)
                parts.append(
                    F.batch_norm(
                        part, kept["running_mean"], kept["running_var"], weights[e], biases[e],
                        True, self.options.momentum, self.options.eps,
                    )
                )  # fmt: skip
            return torch.cat(parts)
        lines = []
        for e, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            kept = self.statistics[e] if self.statistics else dict(self.named_buffers())
            scale = (kept["running_var"] + self.options.eps).rsqrt()
            scale = scale if weight is None else scale * weight
            shift = -kept["running_mean"] * scale
            lines.append(torch.stack([scale, shift if bias is None else shift + bias]))
        scales, shifts = torch.stack(lines, 1)
        return torch.addcmul(self.rows.of(shifts, x, 1), x, self.rows.of(scales, x, 1))


class _LayerNorm(_Layer):
    def run(self, x: Tensor) -> Tensor:
        shape = self.options.normalized_shape
        shared = {
            name: getattr(self, name) if name not in self.own else None
            for name in ("weight", "bias")
        }
        if "weight" in self.own:
            y = F.layer_norm(x, shape, None, None, self.options.eps)
            y = y * self.rows.of(self.own["weight"], y, -1)
            y = y if shared["bias"] is None else y + shared["bias"]
        else:
            y = F.layer_norm(x, shape, shared["weight"], shared["bias"], self.options.eps)
        return y if "bias" not in self.own else y + self.rows.of(self.own["bias"], y, -1)


def _kind(layer: nn.Module) -> type[_Layer] | None:
    """How a layer is grouped; None if it cannot be."""
    if type(layer) is nn.Linear:
        return _Linear
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return _Conv2d
    if type(layer) is nn.BatchNorm2d and layer.momentum is not None and layer.track_running_stats:
        return _BatchNorm
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return _LayerNorm
    return None


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
        lora = next((part for part in adapter.parts if isinstance(part, Lora)), None)
        shared = [*network.parameters(), *network.buffers()]
        self._network = copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
        self._names = list(names)
        self._layers: dict[str, _Layer] = {}
        for path in dict.fromkeys(key.rpartition(".")[0] for key in (*names, *statistics)):
            layer = network.get_submodule(path)
            kind = _kind(layer)
            if kind is None:
                raise UngroupableError(f"{path or 'the network itself'} cannot be grouped")
            weight = layer.weight
            scale = lora.scale(weight) if lora and isinstance(weight, Tensor) else 1.0
            self._layers[path] = kind(layer, scale)
            self._network.set_submodule(path, self._layers[path])

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
        rows = _Rows(experts[order], counted)
        with self._set(rows, self._stack(own), statistics, training):
            output = functional_call(self._network, dict(base), (inputs[order],))
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
        rows: _Rows,
        stack: Stack,
        statistics: Sequence[Mapping[str, Tensor]],
        training: bool,
    ) -> Iterator[None]:
        self._network.train(training)
        for layer in self._layers.values():
            layer.rows = rows
        for name, value in stack.items():
            path, _, kind = name.rpartition(".")
            self._layers[path].own[kind] = value
        if statistics and statistics[0]:
            for path, layer in self._layers.items():
                if isinstance(layer, _BatchNorm):
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
