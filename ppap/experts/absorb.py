"""Absorbing: batch norms rewritten so that experts need no statistics of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppap.experts.expert import Expert

__all__ = ["absorbed"]


@torch.no_grad()
def absorbed(expert: Expert, network: nn.Module) -> Expert:
    """An expert that predicts, with the network's batch statistics, what it did with its own.

    A batch norm in evaluation is an affine map per channel, so its weight and bias can be
    chosen to make up for other statistics. Predictions are the same up to rounding.

    Args:
        expert: is left as it is.
        network: the frozen predictor's.
    """
    tensors, statistics = expert.tensors(), expert.statistics()
    for name, layer in network.named_modules():
        if not isinstance(layer, _BatchNorm) or not layer.affine or not layer.track_running_stats:
            continue
        if f"{name}.running_var" in statistics:
            tensors |= _weight_and_bias(name, layer, tensors, statistics)
            for kind in ("running_mean", "running_var", "num_batches_tracked"):
                del statistics[f"{name}.{kind}"]
    return Expert(tensors, statistics).train(expert.training)


def _weight_and_bias(
    name: str, layer: _BatchNorm, tensors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weight and bias of an expert's batch norm for use with the layer's own statistics."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    weight = tensors.get(f"{name}.weight", layer.weight).double()
    bias = tensors.get(f"{name}.bias", layer.bias).double()
    mean, variance = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
    slope = weight * (variance.double() + layer.eps).rsqrt()
    bias = bias + (layer.running_mean.double() - mean.double()) * slope
    weight = slope * (layer.running_var.double() + layer.eps).sqrt()
    dtype = layer.weight.dtype
    return {f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}
