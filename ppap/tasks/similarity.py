"""Similarity: embeddings against embeddings, of captions or of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap.compute.precision import widened
from ppap.tasks.checks import checked_values, without_nan

__all__ = ["SimilarityTask"]


@dataclass(frozen=True)
class SimilarityTask:
    """Similarity to an embedding, of a caption or of an image: (B, D) against (B, D).

    Lengths do not count. What is followed is scale (cos - 1) for the cosine of the two: the logit
    that CLIP is trained with (Radford et al., arXiv 2103.00020), and up to a constant the
    log-density of a von Mises-Fisher distribution about the target. Near the target it is minus
    half the squared angle, times scale, which CLIP guidance is often given instead; that has no
    derivative at the target's opposite, where this one is smooth.

    Attributes:
        scale: the concentration; 100 is the inverse temperature at which CLIP was trained.

    Raises:
        ValueError: for a scale that is not positive and finite; in use, for a prediction or targets
            of another shape, targets that are not finite or no floating-point numbers, or a
            prediction with NaN that is measured or to be a target.
    """

    scale: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the scale of similarities must be positive, got {self.scale}")

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        """scale (1 - cos), batch mean.

        But for a factor it is the divergence of two von Mises-Fisher distributions about the
        student's and the teacher's embeddings.
        """
        return self.supervised_loss(student, teacher.detach())

    def supervised_loss(self, student: Any, targets: Tensor) -> Tensor:
        """scale (1 - cos), batch mean."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) scale (cos - 1): 0 at the target, -2 scale at its opposite."""
        return -self.scale / 2 * _chords(prediction, targets).square().sum(dim=1)

    def score(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) cosines."""
        away: Tensor = _measured(prediction, targets).square().sum(dim=1)
        return 1 - away / 2

    def errors(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) angles in radians, from 0 to pi."""
        chords: Tensor = torch.linalg.vector_norm(_measured(prediction, targets), dim=1)
        return 2 * (chords / 2).clamp(max=1).asin()

    def target(self, prediction: Any) -> Tensor:
        """(B, D) embeddings of unit length."""
        return F.normalize(without_nan(_embeddings(prediction), "similarity"), dim=1)


def _embeddings(prediction: Any) -> Tensor:
    """(B, D), in float32 if in half precision, or a ValueError."""
    if not isinstance(prediction, Tensor) or prediction.ndim != 2:
        found = tuple(prediction.shape) if isinstance(prediction, Tensor) else type(prediction)
        raise ValueError(f"similarity predictions are embeddings (B, D), got {found}")
    return widened(prediction)


def _chords(prediction: Any, targets: Tensor) -> Tensor:
    """(B, D) from each target to its prediction, both on the unit sphere."""
    found = _embeddings(prediction)
    targets = checked_values(targets, found.shape, "embeddings")
    return F.normalize(found, dim=1) - F.normalize(targets, dim=1)


def _measured(prediction: Any, targets: Tensor) -> Tensor:
    """The same of predictions without NaN."""
    return _chords(without_nan(_embeddings(prediction), "similarity"), targets)
