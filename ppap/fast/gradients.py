"""Gradients of log-likelihoods in x_t as traced graphs in which no weight has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppap.compute.tracing import Traced
from ppap.fast.views import View
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.protocol import GuidanceTask

__all__ = ["Gradient", "total_gradient"]

Compiled = Callable[..., Any]


@dataclass
class Gradient:
    """The gradient in x_t of the log-likelihood under one model and task, per batch size."""

    view: View
    task: GuidanceTask
    compiler: Callable[..., Compiled]
    compiled: dict[tuple[object, ...], Compiled] = field(default_factory=dict)

    def __call__(self, x_t: Tensor, timesteps: Tensor, targets: Tensor) -> Tensor:
        weights = self.view.weights()
        key = x_t.shape, x_t.dtype, x_t.device, targets.shape, targets.dtype
        if key not in self.compiled:

            def run(weights: list[Tensor], x: Tensor, t: Tensor, targets: Tensor) -> list[Tensor]:
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    likelihood = self.task.log_likelihood(self.view.run(weights, x, t), targets)
                    (gradient,) = torch.autograd.grad(likelihood.sum(), x)
                return [gradient]

            arguments = (weights, x_t, timesteps, targets)
            self.compiled[key] = self.compiler(Traced(run, arguments, frozen=False), arguments)
        (gradient,) = self.compiled[key](weights, x_t, timesteps, targets)
        assert isinstance(gradient, Tensor)
        return gradient


def total_gradient(
    terms: list[tuple[Gradient, LikelihoodGuide]],
    targets: list[Tensor],
    x_t: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """The scaled gradients' sum; their scales are numbers."""
    parts = []
    for (gradient, guide), aim in zip(terms, targets, strict=True):
        assert isinstance(guide.scale, int | float)
        parts.append(guide.scale * gradient(x_t, timesteps, aim))
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
