"""Muon: momentum whose update is made orthogonal, for the weights of hidden layers.

Jordan et al., *Muon: an optimizer for hidden layers in neural networks* (2024); its learning
rate is scaled to the size of AdamW's steps as in Liu et al. (arXiv 2502.16982, equation 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration: they bring singular values near 1 fast, not exactly to it."""
ADAM_SIZE = 0.2
"""Root mean square of a usual step of AdamW, in units of its learning rate."""


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(N, R, C) matrices with their singular values brought to about 1 (0.7 to 1.2).

    Newton-Schulz iterations of fifth order, in the dtype of the matrices.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None].to(x.dtype) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum of Nesterov's kind, made orthogonal, for weights of two dimensions or more.

    A convolution counts as the matrix (outputs, inputs x kernel).

    Args:
        parameters: weights of hidden layers.
        learning_rate: of AdamW, for steps of as much root mean square.
        momentum: decay of the average of gradients.
        dtype: in which updates are made orthogonal.

    Raises:
        ValueError: for a parameter that is no matrix.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        chosen = list(parameters)
        if any(parameter.ndim < 2 for parameter in chosen):
            raise ValueError("Muon is for matrices; leave biases and norms to AdamW")
        super().__init__(chosen, {"lr": learning_rate, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step; matrices of one shape are made orthogonal together."""
        del closure
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for shape, parameters in alike.items():
                wanted = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
                found = orthogonalised(torch.stack([w.flatten(1).to(self.dtype) for w in wanted]))
                size = ADAM_SIZE * max(shape) ** 0.5
                for parameter, update in zip(parameters, found, strict=True):
                    change = update.reshape(parameter.shape).to(parameter.dtype)
                    parameter.add_(change, alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "average" not in state:
            state["average"] = torch.zeros_like(parameter)
        average: Tensor = state["average"]
        average.lerp_(gradient, 1 - decay)
        return gradient.lerp(average, decay)
