"""Guidance by the image that the denoiser predicts: no noise-aware model is needed.

The gradient goes through the denoiser, which costs its backward pass: the forward guidance of
Bansal et al. (arXiv 2302.07121), and diffusion posterior sampling (Chung et al., arXiv
2209.14687) without its normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppap.diffusion.guide import State
from ppap.guidance.guides import Targets, as_targets, move, targets_for
from ppap.guidance.scale import Scale, checked_scale, scale_rows, scaled
from ppap.tasks.protocol import GuidanceTask

__all__ = ["PredictedImageGuide"]


class PredictedImageGuide:
    """scale * gradient in x_t of log p(target | predictor(image predicted from x_t)).

    For a latent denoiser the image is the decoded one (``Denoiser(..., decode=...)``), so that a
    predictor of images guides it as it is.

    Args:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction, differentiable.
        task: what its predictions mean.
        targets: as of :class:`ppap.guidance.guides.LikelihoodGuide`.
        scale: guidance scale, likewise.

    Raises:
        ValueError: as :class:`ppap.guidance.guides.LikelihoodGuide`.
    """

    def __init__(
        self,
        predictor: Callable[[Tensor], Any],
        task: GuidanceTask,
        targets: Targets,
        scale: Scale = 1.0,
    ) -> None:
        self.predictor = predictor
        self.task = task
        self.targets = as_targets(targets)
        self.scale = checked_scale(scale, len(self.targets) if len(self.targets) != 1 else None)

    def __call__(self, state: State) -> Tensor:
        inner = state.with_graph()
        with torch.enable_grad():
            prediction = self.predictor(inner.image())
            likelihood = self.task.log_likelihood(prediction, targets_for(self.targets, inner.x_t))
            (gradient,) = torch.autograd.grad(likelihood.sum(), inner.x_t)
        return scaled(self.scale, gradient, state)

    @property
    def target_count(self) -> int | None:
        if len(self.targets) != 1:
            return len(self.targets)
        return len(self.scale) if isinstance(self.scale, Tensor) else None

    def to(self, device: torch.device | str) -> None:
        """Move the model that guides, if it is a module."""
        move(self.predictor, device)

    def rows(self, chosen: slice) -> PredictedImageGuide:
        targets = self.targets if len(self.targets) == 1 else self.targets[chosen]
        scale = scale_rows(self.scale, chosen)
        return PredictedImageGuide(self.predictor, self.task, targets, scale)
