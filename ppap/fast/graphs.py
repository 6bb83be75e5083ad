"""A whole guided step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CapturedFunction"]

WARM_UPS = 3


class CapturedFunction:
    """A function of tensors as a CUDA graph over static inputs."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compilation and allocations happen outside the capture
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(*self.inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        self.graph.replay()
        return self.output.clone()
