"""Adapters: the trainable part that is added to a frozen predictor.

An adapter is a tuple of parts. A part says which tensors it owns and how they change the
frozen network's parameters; nothing is ever written into the network itself. The paper's
adapter is three parts: :class:`Lora` on convolutions (loralib's form) and linear layers,
:class:`Biases` and :class:`Norms`. :class:`Full` is full fine-tuning in the same terms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from ppap_kernels import merge_lora
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "ATTENTION_LORA_LAYERS",
    "DEEPLAB_LORA_LAYERS",
    "DPT_LORA_LAYERS",
    "MIDAS_LORA_LAYERS",
    "SEGFORMER_LORA_LAYERS",
    "Adapter",
    "Biases",
    "Full",
    "Head",
    "Lora",
    "Norms",
    "Part",
    "Student",
    "full_adapter",
    "matching_layers",
    "ppap_adapter",
]

Tensors = dict[str, Tensor]
PPAP_LORA_LAYERS = r"(^|\.)(conv[12]|attn\.qkv|attn\.proj)$"
DEEPLAB_LORA_LAYERS = r"(^|\.)conv[12]$|(^|\.)(aux_)?classifier\."
"""Of torchvision's DeepLabV3 on a ResNet: the encoder's conv1 and conv2, all of the decoder."""
MIDAS_LORA_LAYERS = r"(^|\.)(conv_pw|layer[1-4]_rn)$|(^|\.)refinenet[1-4]\."
"""Of MiDaS v2.1 small, as in the released code."""
ATTENTION_LORA_LAYERS = r"(^|\.)(query|key|value|[qkvo]_proj|out_proj|attention\.output\.dense)$"
"""Of transformers' vision models, CLIP among them: attention, as in a DeiT of timm."""
DPT_LORA_LAYERS = (
    ATTENTION_LORA_LAYERS
    + r"|(^|\.)conv[12]$|(^|\.)neck\.(convs\.|fusion_stage\.layers\.(?!0\.residual_layer1))"
)
"""Of transformers' DPT and Depth Anything: the encoder's attention, a hybrid's conv1 and conv2, and
the decoder but for the layers of its first fusion that no prediction uses."""
SEGFORMER_LORA_LAYERS = ATTENTION_LORA_LAYERS + r"|(^|\.)decode_head\."
"""Of transformers' SegFormer: the encoder's attention, all of the decoder."""
PPAP_NORM_LAYERS = r"(^|\.)bn\d+$"
HEAD_LAYERS = r"(^|\.)(fc|head)$"
PPAP_NO_BIAS = r"(^|\.)fc\.bias$"


class Part(Protocol):
    """One separable piece of an adapter."""

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        """Fresh trainable tensors, by name; they leave the network's outputs unchanged."""
        ...

    def buffers(self, network: nn.Module) -> Tensors:
        """Fresh copies of the buffers that the adapter keeps for itself."""
        ...

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        """Change the effective ``weights`` of the network in the dictionary (not in place)."""
        ...


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
            if kind == "lora_A":
                weight, up = weights[f"{layer}.weight"], own[f"{layer}.lora_B"]
                weights[f"{layer}.weight"] = _updated(weight, down, up, self.scale(weight))


@dataclass(frozen=True)
class Biases:
    """Own copies of the biases.

    Attributes:
        exclude: regular expression for the names of biases that stay frozen; the default
            leaves a ResNet's ``fc.bias``, as the released code does; an empty one leaves none.
    """

    exclude: str = PPAP_NO_BIAS

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return {
            name: parameter.detach().clone()
            for name, parameter in network.named_parameters()
            if name.endswith("bias") and not (self.exclude and re.search(self.exclude, name))
        }

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        _replace(weights, own)


@dataclass(frozen=True)
class Norms:
    """Own copies of normalisation weights and biases, and of batch-norm statistics.

    Attributes:
        layers: regular expression for the names of the adapted layers; the default is the
            released code's: a ResNet's ``bn1``, ``bn2``, ..., not those of down-sampling
            shortcuts and not the layer norms of transformers.
        statistics: whether running statistics are re-estimated on noisy images, for every
            batch norm, as training in the released code's mode does.
    """

    layers: str = PPAP_NORM_LAYERS
    statistics: bool = True

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return {
            f"{name}.{key}": parameter.detach().clone()
            for name, layer in network.named_modules()
            if re.search(self.layers, name) and _is_norm(layer)
            for key, parameter in layer.named_parameters(recurse=False)
        }

    def buffers(self, network: nn.Module) -> Tensors:
        return _batch_statistics(network) if self.statistics else {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        _replace(weights, own)


@dataclass(frozen=True)
class Head:
    """Own copies of the last layer's weight and bias: linear probing.

    Attributes:
        layers: regular expression for its name.
    """

    layers: str = HEAD_LAYERS

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return {
            f"{name}.{key}": parameter.detach().clone()
            for name, layer in network.named_modules()
            if re.search(self.layers, name)
            for key, parameter in layer.named_parameters(recurse=False)
        }

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        _replace(weights, own)


@dataclass(frozen=True)
class Full:
    """Own copies of every parameter and of batch-norm statistics: full fine-tuning."""

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return {name: value.detach().clone() for name, value in network.named_parameters()}

    def buffers(self, network: nn.Module) -> Tensors:
        return _batch_statistics(network)

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        _replace(weights, own)


@runtime_checkable
class Wrapping(Part, Protocol):
    """A part whose layers have a forward of their own, which training must run."""

    def student(self, network: nn.Module, parts: tuple[Part, ...]) -> Student:
        """Runs the network with all parts of the adapter, this one among them."""
        ...


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
        for part in self.parts:
            part.apply(weights, own)
        return weights

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
        return functional_call(self.network, state, (inputs,))


@dataclass(frozen=True)
class Adapter:
    """The parts of an adapter, applied in order.

    Attributes:
        parts: e.g. ``(Biases(), Norms(), Lora(rank=4))``.

    Raises:
        ValueError: for more than one part with a forward of its own.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        wrapping = [part for part in self.parts if isinstance(part, Wrapping)]
        if len(wrapping) > 1:
            raise ValueError(
                f"an adapter holds one peft method, got {len(wrapping)}; "
                "name all its layers in one part"
            )

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        """Fresh trainable tensors of all parts, by name.

        Raises:
            ValueError: if no layer of the network matches.
        """
        own: Tensors = {}
        for part in self.parts:
            own.update(part.create(network, generator))
        if not own:
            raise ValueError(f"{self} finds nothing to train in {type(network).__name__}")
        return own

    def buffers(self, network: nn.Module) -> Tensors:
        """Fresh copies of the buffers that the adapter keeps for itself."""
        return {key: value for part in self.parts for key, value in part.buffers(network).items()}

    def effective(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensors:
        """The network's parameters under the adapter, differentiable in ``own``.

        Args:
            base: the frozen network's parameters, by name.
            own: the adapter's tensors.

        Returns:
            All parameters, by name; those that the adapter leaves alone are shared.
        """
        return Student(nn.Identity(), self.parts).effective(base, own)

    def student(self, network: nn.Module) -> Student:
        """How the network makes predictions under this adapter."""
        for part in self.parts:
            if isinstance(part, Wrapping):
                return part.student(network, self.parts)
        return Student(network, self.parts)


def ppap_adapter(rank: int = 16, alpha: float = 8.0) -> Adapter:
    """The paper's adapter: LoRA, biases and batch norms, on the layers of the released code."""
    return Adapter((Biases(), Norms(), Lora(rank, alpha)))


def full_adapter() -> Adapter:
    """Full fine-tuning."""
    return Adapter((Full(),))


def matching_layers(
    network: nn.Module, pattern: str
) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear and convolutional layers whose name a regular expression finds.

    Raises:
        ValueError: if there is none.
    """
    found = False
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and re.search(pattern, name):
            found = True
            yield name, layer
    if not found:
        kinds = (nn.Linear, nn.Conv2d)
        names = [name for name, layer in network.named_modules() if isinstance(layer, kinds)]
        raise ValueError(
            f"no linear or convolutional layer of {type(network).__name__} matches {pattern!r}; "
            f"its layers are {', '.join([*names[:6], '...']) if names else 'none'}"
        )


def _updated(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A, in one pass where no gradient is wanted and a kernel can do it."""
    if weight.is_cuda and not torch.is_grad_enabled():
        return merge_lora(torch.empty_like(weight), weight, down, up, scale)
    return weight + scale * (up @ down).view(weight.shape)


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm | nn.GroupNorm | nn.LayerNorm)


def _batch_statistics(network: nn.Module) -> Tensors:
    return {
        f"{name}.{key}": buffer.detach().clone()
        for name, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        for key, buffer in layer.named_buffers(recurse=False)
    }


def _replace(weights: Tensors, own: Mapping[str, Tensor]) -> None:
    weights.update({key: value for key, value in own.items() if key in weights})
