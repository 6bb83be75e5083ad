"""Segmentation: a class for every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

from ppap.tasks.maps import known_mean

__all__ = ["IGNORED", "SegmentationTask"]

IGNORED = -1
"""The label of pixels about which a segmentation target says nothing."""


@dataclass(frozen=True)
class SegmentationTask:
    """Segmentation: (B, K, H, W) logits against (B, H, W) labels, -1 where any label will do.

    Attributes:
        temperature: the teacher's logits are divided by it, as in :class:`ClassTask`.
    """

    temperature: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")

    def transfer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student) in nats, mean over pixels and images."""
        target = F.log_softmax(teacher.detach() / self.temperature, dim=1)
        ours = F.log_softmax(student, dim=1)
        return F.kl_div(ours, target, reduction="none", log_target=True).sum(dim=1).mean()

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, mean over labelled pixels and then over images."""
        return -self.log_likelihood(student, targets).mean()

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) log-probability of the labels in nats per labelled pixel."""
        labels, known = _labels(prediction, targets)
        picked = F.log_softmax(prediction, dim=1).gather(1, labels[:, None])[:, 0]
        return known_mean(picked, known)

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) mean intersection over union, of the labels that either map holds."""
        labels, known = _labels(prediction, targets)
        one_hot = F.one_hot(torch.stack([prediction.argmax(1), labels]), prediction.shape[1])
        ours, theirs = (one_hot * known[None, :, :, :, None]).bool()
        both = (ours & theirs).sum(dim=(1, 2))
        either = (ours | theirs).sum(dim=(1, 2))
        held = either > 0
        found: Tensor = (both / either.clamp(min=1)).sum(1) / held.sum(1).clamp(min=1)
        return found

    def errors(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) share of labelled pixels whose most likely label is another."""
        labels, known = _labels(prediction, targets)
        return known_mean((prediction.argmax(1) != labels).to(torch.float32), known)

    def target(self, prediction: Tensor) -> Tensor:
        """(B, H, W) most likely labels."""
        return prediction.argmax(dim=1)


def _labels(prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Labels that can be looked up, and which of them count: both (B, H, W)."""
    batch, classes, *size = prediction.shape
    if targets.shape != (batch, *size):
        raise ValueError(
            f"logits of shape {tuple(prediction.shape)} cannot be compared with labels of shape "
            f"{tuple(targets.shape)}; resize the targets"
        )
    traced = get_proxy_mode() is not None  # values are not known then
    if not traced and targets.numel() and int(targets.max()) >= classes:
        raise ValueError(f"label {int(targets.max())} is beyond the {classes} classes")
    return targets.clamp(min=0), targets >= 0
