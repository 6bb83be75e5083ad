"""Guides: (x_t, t, target) -> gradient of the log-likelihood in x_t.

A guide is all a sampler sees of predictors, experts and tasks. The naive off-the-shelf
guide, the single noise-aware model and the bank of experts are the same
:class:`LikelihoodGuide` over different models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ppap.tasks.protocol import Task

__all__ = [
    "Guide",
    "IgnoreTimestep",
    "LikelihoodGuide",
    "NoiseAwareModel",
    "SumOfGuides",
    "naive_guide",
]

NoiseAwareModel = Callable[[Tensor, Tensor], Any]
"""(x_t: (B, C, H, W), timesteps: (B,)) -> prediction."""


class Guide(Protocol):
    """Steers a batch towards its targets."""

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Scaled gradient in x_t: (B, C, H, W), for x_t: (B, C, H, W), timesteps: (B,)."""
        ...

    def __len__(self) -> int:
        """Number of targets."""
        ...

    def rows(self, chosen: slice) -> Guide:
        """The guide of some of the targets."""
        ...


@dataclass(frozen=True)
class LikelihoodGuide:
    """scale * gradient in x_t of log p(target | model(x_t, t)).

    Attributes:
        model: a noise-aware model, such as an :class:`ppap.experts.expert.ExpertBank` or ADM's
            noisy classifier.
        task: what its predictions mean.
        targets: (N, ...) one target per image, as the task wants them.
        scale: guidance scale; 0 leaves the sampler unguided.
    """

    model: NoiseAwareModel
    task: Task
    targets: Tensor
    scale: float = 1.0

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            prediction = self.model(x, timesteps)
            likelihood = self.task.log_likelihood(prediction, self.targets.to(x_t.device))
            (gradient,) = torch.autograd.grad(likelihood.sum(), x)
        return self.scale * gradient

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, chosen: slice) -> LikelihoodGuide:
        return replace(self, targets=self.targets[chosen])


@dataclass(frozen=True)
class SumOfGuides:
    """Several guides at once, e.g. a class and a depth map: their gradients add.

    Raises:
        ValueError: for no guide, or guides with different numbers of targets.
    """

    parts: tuple[Guide, ...]

    def __post_init__(self) -> None:
        sizes = {len(part) for part in self.parts}
        if len(sizes) != 1:
            raise ValueError(f"guides must have the same number of targets, got {sorted(sizes)}")

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        first, *rest = self.parts
        gradient = first(x_t, timesteps)
        for part in rest:
            gradient = gradient + part(x_t, timesteps)
        return gradient

    def __len__(self) -> int:
        return len(self.parts[0])

    def rows(self, chosen: slice) -> SumOfGuides:
        return SumOfGuides(tuple(part.rows(chosen) for part in self.parts))


@dataclass(frozen=True)
class IgnoreTimestep:
    """A model of images as a model of noisy images that pays no heed to their timesteps.

    Attributes:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction.
    """

    predictor: Callable[[Tensor], Any]

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Any:
        del timesteps
        return self.predictor(x_t)


def naive_guide(
    predictor: Callable[[Tensor], Any], task: Task, targets: Tensor, scale: float = 1.0
) -> LikelihoodGuide:
    """Show the noisy image to a model that was trained on clean ones: the failing baseline.

    Args:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction.
        task: what its predictions mean.
        targets: (N, ...) one target per image.
        scale: guidance scale.
    """
    return LikelihoodGuide(IgnoreTimestep(predictor), task, targets, scale)
