"""Layers that run every row of a batch under its own expert.

A LoRA on a linear layer is one grouped operation (:func:`ppap_kernels.grouped_lora_linear`),
biases and norms are looked up per sample, and only what has no shared part, such as a convolution
whose merged weights differ, goes through its experts one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ppap_kernels import grouped_lora_linear
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GroupedBatchNorm", "GroupedLayer", "Rows", "Stack", "UngroupableError", "grouped_kind"]

Stack = dict[str, Tensor]
"""(E, ...) tensors of all experts, by name."""


class UngroupableError(ValueError):
    """The network or its adapter has no form in which rows of several experts go together."""


@dataclass(frozen=True)
class Rows:
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


class GroupedLayer(nn.Module):
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
        self.rows: Rows

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
        """Turn a low-rank update into own weights, once: a layer may be called several times."""
        if "lora_A" in self.own:
            weight = self.own.get("weight", self.weight)
            assert isinstance(weight, Tensor)
            shape = (-1, *weight.shape[-self.options.weight.ndim :])
            self.own["weight"] = (weight + self.update().view(shape)).to(weight.dtype)
            del self.own["lora_A"], self.own["lora_B"]


class GroupedLinear(GroupedLayer):
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
            a, b = (self.own[name].to(weight.dtype) for name in ("lora_A", "lora_B"))
            y = grouped_lora_linear(x, weight, a, b, self.rows.index, shared, self.scale)
        else:
            y = F.linear(x, weight, shared)
        return y if bias is None else y + self.rows.of(bias, y, -1)


class GroupedConv2d(GroupedLayer):
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


class GroupedBatchNorm(GroupedLayer):
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
        scales, shifts = torch.stack(lines, 1).to(x.dtype)
        return torch.addcmul(self.rows.of(shifts, x, 1), x, self.rows.of(scales, x, 1))


class GroupedLayerNorm(GroupedLayer):
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


def grouped_kind(layer: nn.Module) -> type[GroupedLayer] | None:
    """How a layer is grouped; None if it cannot be."""
    if type(layer) is nn.Linear:
        return GroupedLinear
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return GroupedConv2d
    if type(layer) is nn.BatchNorm2d and layer.momentum is not None and layer.track_running_stats:
        return GroupedBatchNorm
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return GroupedLayerNorm
    return None
