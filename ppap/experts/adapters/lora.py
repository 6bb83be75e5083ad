"""Low-rank adaptation (LoRA) in the form of microsoft's loralib."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from ppap_kernels import merge_lora
from torch import Tensor, nn

from ppap.experts.adapters.layers import PPAP_LORA_LAYERS, matching_layers
from ppap.experts.adapters.parts import Tensors

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of linear layers and, in loralib's form, of convolutions.

    A convolution of kernel k gets A: (rank k, in k) and B: (out/groups k, rank k), a linear
    layer A: (rank, in) and B: (out, rank); the update B A, viewed as the layer's weight, is
    added times alpha / rank (Hu et al., arXiv 2106.09685; microsoft/LoRA).

    Attributes:
        rank: gamma in the PPAP paper.
        alpha: numerator of the scaling.
        layers: regular expression for the names of the adapted layers; the default finds
            what the released code adapts: the stem, conv1 and conv2 of ResNets, attention's
            qkv and proj of vision transformers.
        linear_scaling: ``"published"`` leaves alpha / rank out of linear layers, as the
            released code does where it does not merge.
    """

    rank: int = 16
    alpha: float = 8.0
    layers: str = PPAP_LORA_LAYERS
    linear_scaling: Literal["corrected", "published"] = "corrected"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA's rank must be at least 1, got {self.rank}")
        if self.linear_scaling not in ("corrected", "published"):
            raise ValueError(
                f"unknown linear_scaling {self.linear_scaling!r}; choose corrected or published"
            )

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def scale(self, weight: Tensor) -> float:
        """What the update of a layer with this weight is multiplied by."""
        unscaled = weight.ndim == 2 and self.linear_scaling == "published"
        return 1.0 if unscaled else self.scaling

    def adapts(self, layer: str) -> bool:
        """Whether a layer's low-rank update is this part's, by the layer's name."""
        return re.search(self.layers, layer) is not None

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        own: Tensors = {}
        for name, layer in matching_layers(network, self.layers):
            rows, columns, inner = self._factors(name, layer)
            bound = 1 / math.sqrt(columns)
            own[f"{name}.lora_A"] = torch.empty(inner, columns).uniform_(
                -bound, bound, generator=generator
            )
            own[f"{name}.lora_B"] = torch.zeros(rows, inner)
        return own

    def _factors(self, name: str, layer: nn.Linear | nn.Conv2d) -> tuple[int, int, int]:
        """Rows of B, columns of A, and what they share."""
        if isinstance(layer, nn.Linear):
            return layer.out_features, layer.in_features, self.rank
        kernel = layer.kernel_size[0]
        if layer.kernel_size != (kernel, kernel):
            raise ValueError(f"{name}: LoRA in loralib's form needs a square kernel")
        return (
            layer.out_channels // layer.groups * kernel,
            layer.in_channels * kernel,
            self.rank * kernel,
        )

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        for key, down in own.items():
            layer, _, kind = key.rpartition(".")
            if kind == "lora_A" and self.adapts(layer):
                weight, up = weights[f"{layer}.weight"], own[f"{layer}.lora_B"]
                weights[f"{layer}.weight"] = _updated(weight, down, up, self.scale(weight))


def _updated(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A, in one pass where no gradient is wanted and a kernel can do it."""
    if weight.is_cuda and not torch.is_grad_enabled():
        return merge_lora(torch.empty_like(weight), weight, down, up, scale)
    return weight + scale * (up @ down).view(weight.shape)
