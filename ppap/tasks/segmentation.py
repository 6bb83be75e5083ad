"""Segmentation: a class for every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap.tasks.checks import check_alike, checked_labels, checked_scores, without_nan
from ppap.tasks.classes import divergences
from ppap.tasks.maps import known_mean

__all__ = ["IGNORED", "SegmentationTask"]

IGNORED = -1
"""The label of pixels about which a segmentation target says nothing."""


@dataclass(frozen=True)
class SegmentationTask:
    """Segmentation: (B, K, H, W) logits against (B, H, W) labels, -1 where any label will do.

    Attributes:
        temperature: the teacher's logits are divided by it, as in :class:`ClassTask`.

    Raises:
        TypeError: in use, for a prediction that is no tensor.
        ValueError: for a temperature that is not positive and finite; in use, for a prediction or
            targets of another shape or dtype, a label that does not exist, or NaN where the most
            likely labels are asked for.
    """

    temperature: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        """KL(teacher || student) in nats, mean over pixels and images."""
        student, teacher = _logits(student), _logits(teacher)
        check_alike(student, teacher)
        return divergences(student, teacher, self.temperature).sum(dim=1).mean()

    def supervised_loss(self, student: Any, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, mean over labelled pixels and then over images."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) log-probability of the labels in nats per labelled pixel."""
        logits, labels, known = _compared(prediction, targets)
        picked = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
        return known_mean(picked, known)

    def score(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) mean intersection over union, of the labels that either map holds."""
        logits, labels, known = _compared(prediction, targets)
        found, classes = _top(logits), logits.shape[1]
        ours, theirs = (_pixels_of(part, known, classes) for part in (found, labels))
        both = _pixels_of(labels, known & (found == labels), classes)
        either = ours + theirs - both
        held = either > 0
        mean: Tensor = (both / either.clamp(min=1)).sum(1) / held.sum(1).clamp(min=1)
        return mean

    def errors(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) share of labelled pixels whose most likely label is another."""
        logits, labels, known = _compared(prediction, targets)
        return known_mean((_top(logits) != labels).to(torch.float32), known)

    def target(self, prediction: Any) -> Tensor:
        """(B, H, W) most likely labels."""
        return _top(_logits(prediction))


def _logits(prediction: Any) -> Tensor:
    return checked_scores(prediction, 4, "segmentation")


def _top(logits: Tensor) -> Tensor:
    """(B, H, W) most likely labels."""
    return without_nan(logits, "segmentation").argmax(dim=1)


def _pixels_of(labels: Tensor, counted: Tensor, classes: int) -> Tensor:
    """(B, K) how many pixels of (B, H, W) labels each class has, of those that count."""
    none = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
    return none.scatter_add(1, labels.flatten(1), counted.flatten(1).long())


def _compared(prediction: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels that can be looked up in them, and which of these count."""
    logits = _logits(prediction)
    batch, classes, *size = logits.shape
    labels = checked_labels(targets, torch.Size((batch, *size)), classes, IGNORED)
    return logits, labels.clamp(min=0), labels >= 0
