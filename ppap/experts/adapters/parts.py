"""Parts of an adapter, and those that own copies of the network's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from ppap.experts.adapters.layers import HEAD_LAYERS, PPAP_NO_BIAS, PPAP_NORM_LAYERS, check_pattern
from ppap.predictors.wrappers import plain_name

__all__ = ["Biases", "Full", "Head", "Norms", "Part", "Tensors"]

Tensors = dict[str, Tensor]
"""Tensors by name."""


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
class Biases:
    """Own copies of the biases, those of recurrent layers among them.

    Attributes:
        exclude: regular expression for the names of biases that stay frozen; the default
            leaves a ResNet's ``fc.bias``, as the released code does; an empty one leaves none.
    """

    exclude: str = PPAP_NO_BIAS

    def __post_init__(self) -> None:
        check_pattern(self.exclude)

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        recurrent = _recurrent_biases(network)
        return {
            name: _own_copy(parameter)
            for name, parameter in network.named_parameters()
            if name.endswith("bias") or name in recurrent
            if not (self.exclude and re.search(self.exclude, plain_name(network, name)))
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

    def __post_init__(self) -> None:
        check_pattern(self.layers)

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return _own_copies(network, filter(_is_norm, _found(network, self.layers)))

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

    def __post_init__(self) -> None:
        check_pattern(self.layers)

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        return _own_copies(network, _found(network, self.layers))

    def buffers(self, network: nn.Module) -> Tensors:
        return {}

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        _replace(weights, own)


@dataclass(frozen=True)
class Full:
    """Own copies of every parameter and of batch-norm statistics: full fine-tuning.

    Parameters that are no floating-point or complex numbers, such as a permutation, stay.
    """

    def create(self, network: nn.Module, generator: torch.Generator) -> Tensors:
        named = network.named_parameters()
        return {name: _own_copy(value) for name, value in named if _is_trainable(value)}

    def buffers(self, network: nn.Module) -> Tensors:
        return _batch_statistics(network)

    def apply(self, weights: Tensors, own: Mapping[str, Tensor]) -> None:
        _replace(weights, own)


def _recurrent_biases(network: nn.Module) -> set[str]:
    """Names of the biases of recurrent layers, such as ``bias_ih_l0``."""
    return {
        f"{path}.{leaf}" if path else leaf
        for path, layer in network.named_modules()
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase)
        for leaf in layer._parameters
        if leaf.startswith("bias_")
    }


def _found(network: nn.Module, pattern: str) -> Iterator[nn.Module]:
    """The layers whose name a regular expression finds."""
    for name, layer in network.named_modules():
        if re.search(pattern, plain_name(network, name)):
            yield layer


def _own_copies(network: nn.Module, layers: Iterable[nn.Module]) -> Tensors:
    """Copies of layers' own parameters, or of those that these are computed from.

    One that several layers share goes by the name that the network's ``named_parameters`` gives it.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: Tensors = {}
    for layer in layers:
        own = list(layer.parameters(recurse=False))
        if is_parametrized(layer):
            own += layer.get_submodule("parametrizations").parameters()
        found |= {
            names[id(parameter)]: _own_copy(parameter)
            for parameter in own
            if _is_trainable(parameter)
        }
    return found


def _is_trainable(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


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
    for key, value in own.items():
        if key in weights:
            weights[key] = value.to(weights[key].dtype)


def _own_copy(parameter: Tensor) -> Tensor:
    """In float32 if the network is in half precision, which would round small steps away."""
    copy = parameter.detach().clone()
    return copy.float() if copy.dtype in (torch.float16, torch.bfloat16) else copy
