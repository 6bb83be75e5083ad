"""Networks around networks: one output of several, and mixed precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppap.compute.options import check_choice

__all__ = ["MixedPrecision", "SelectOutput", "plain_name"]


class SelectOutput(nn.Module):
    """A network of whose several outputs one is the prediction.

    E.g. ``SelectOutput(deeplabv3_resnet50(...), "out")``,
    ``SelectOutput(DPTForDepthEstimation(...), "predicted_depth")``, or
    ``SelectOutput(googlenet(...), 0)``, which has several in training mode alone: a single tensor
    is the prediction itself.

    Args:
        network: returns a mapping, an object with attributes, a tuple or a tensor.
        output: key, name or place of the one that is taken.
    """

    def __init__(self, network: nn.Module, output: str | int) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, images: Tensor) -> Any:
        found = self.network(images)
        if isinstance(found, Tensor):
            return found
        if isinstance(self.output, int) or isinstance(found, Mapping):
            return found[self.output]
        return getattr(found, self.output)


class MixedPrecision(nn.Module):
    """A network that computes under autocast, with weights, prediction and gradient in float32.

    Weights stay as they are, so that experts trained in float32 fit, and the small updates that
    are merged into them are not rounded away.

    Args:
        network: its prediction is one tensor.
        dtype: ``torch.bfloat16``, or ``torch.float16``, in which small gradients vanish: its
            least positive number is 6e-8.

    Raises:
        ValueError: for another dtype.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        check_choice("dtype", dtype, (torch.bfloat16, torch.float16))
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """The prediction for (B, C, H, W) images, in their dtype."""
        with torch.autocast(images.device.type, self.dtype):
            prediction = self.network(images)
        return torch.as_tensor(prediction).to(images.dtype)


def plain_name(network: nn.Module, key: str) -> str:
    """The name of a layer or tensor in the network that computes in mixed precision, if one does.

    Experts, and patterns that name layers, are then the same with and without it.
    """
    return key.removeprefix("network.") if isinstance(network, MixedPrecision) else key
