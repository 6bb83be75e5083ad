"""Low-rank adaptation (LoRA) in the form of microsoft's loralib."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from ppap_kernels.merge_lora import merge_lora, mergeable
from torch import Tensor, nn

from ppap.compute.options import check_choice, check_number, check_whole
from ppap.experts.adapters.layers import (
    AUTO,
    PPAP_LORA_LAYERS,
    AdaptableWeight,
    check_pattern,
    matching_weights,
    weight_name,
)
from ppap.experts.adapters.parts import Tensors

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of linear layers and, in loralib's form, of convolutions.

    A convolution of kernel k gets A: (rank k, in k) and B: (out/groups k, rank k), a linear
    layer A: (rank, in) and B: (out, rank); the update B A, viewed as the layer's weight, is
    added times alpha / rank (Hu et al., arXiv 2106.09685; microsoft/LoRA). Where a kernel is not
    square, or of one or three dimensions, B's and the shared k are its first side and A's is the
    product of the others.

    A and B are float32 for weights of half precision, which the sum is rounded to: updates are
    far smaller than the weights.

    Attributes:
        rank: gamma in the PPAP paper.
        alpha: numerator of the scaling.
        layers: regular expression for the names of the adapted layers; the default finds
            what the released code adapts: the stem, conv1 and conv2 of ResNets, attention's
            qkv and proj of vision transformers. ``"auto"`` finds the attention, MLPs and
            convolutions of any network.
        linear_scaling: ``"published"`` leaves alpha / rank out of linear layers, as the
            released code does where it does not merge.
    """

    rank: int = 16
    alpha: float = 8.0
    layers: str = PPAP_LORA_LAYERS
    linear_scaling: Literal["corrected", "published"] = "corrected"

    def __post_init__(self) -> None:
        check_pattern(self.layers)
        check_whole("LoRA's rank", self.rank)
        check_number("LoRA's alpha", self.alpha, 0, above=True)
        check_choice("linear_scaling", self.linear_scaling, ("corrected", "published"))

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def scale(self, weight: Tensor) -> float:
        """What the update of a layer with this weight is multiplied by."""
        unscaled = weight.ndim == 2 and self.linear_scaling == "published"
        return 1.0 if unscaled else self.scaling

    def adapts(self, layer: str) -> bool:
        """Whether a layer's low-rank update is this part's, by the layer's name.

        It may be the name around a network that computes in mixed precision.
        """
        names = {layer, layer.removeprefix("network.")}
        return self.layers == AUTO or any(re.search(self.layers, name) for name in names)

    def weights(self, network: nn.Module) -> list[AdaptableWeight]:
        """What is adapted in a network.

        Raises:
            ValueError: for none.
        """
        return matching_weights(network, self.layers)

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        own: Tensors = {}
        for about in self.weights(network):
            rows, columns, inner = self._factors(about)
            bound = 1 / math.sqrt(columns)
            dtype = torch.promote_types(about.weight.dtype, torch.float32)
            down = torch.empty(inner, columns, dtype=torch.float32)
            down.uniform_(-bound, bound, generator=generator)
            own[f"{about.name}.lora_A"] = down.to(dtype)
            own[f"{about.name}.lora_B"] = torch.zeros(rows, inner, dtype=dtype)
        return own

    def _factors(self, about: AdaptableWeight) -> tuple[int, int, int]:
        """Rows of B, columns of A, and what they share."""
        outputs, inputs, *kernel = about.weight.shape
        side, area = (kernel[0], math.prod(kernel[1:])) if kernel else (1, 1)
        return outputs // about.groups * side, inputs * about.groups * area, self.rank * side

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        for key, down in own.items():
            layer, _, kind = key.rpartition(".")
            if kind == "lora_A" and self.adapts(layer):
                name = weight_name(weights, layer)
                weight, up = weights[name], own[f"{layer}.lora_B"]
                weights[name] = _updated(weight, down, up, self.scale(weight))


def _updated(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A, in one pass where no gradient is wanted and a kernel can do it."""
    alike = weight.dtype == down.dtype and mergeable(weight, down, up)
    if weight.is_cuda and not torch.is_grad_enabled() and alike:
        return merge_lora(torch.empty_like(weight), weight, down, up, scale)
    return (weight + scale * (up @ down).view(weight.shape)).to(weight.dtype)
