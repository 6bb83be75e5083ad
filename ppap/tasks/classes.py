"""Classification: logits against class indices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from ppap_kernels import transfer_loss
from torch import Tensor
from torch.nn import functional as F

from ppap.tasks.checks import check_alike, checked_labels, checked_scores, without_nan

__all__ = ["ClassTask", "divergences"]


@dataclass(frozen=True)
class ClassTask:
    """Classification: (B, K) logits against (B,) class indices, integers from 0 to K - 1.

    Attributes:
        temperature: the teacher's logits are divided by it before the softmax; 0.25, the
            released code's value, sharpens them. The student's are used as they are.

    Raises:
        TypeError: in use, for a prediction that is no tensor.
        ValueError: for a temperature that is not positive and finite; in use, for a prediction or
            targets of another shape or dtype, a class that does not exist, or NaN where the most
            likely class is asked for.
    """

    temperature: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        """KL(teacher || student), batch mean in nats; both (B, K) logits."""
        student, teacher = self._logits(student), self._logits(teacher)
        check_alike(student, teacher)
        if student.is_cuda:  # loss and gradient in one pass over the logits
            return transfer_loss(student, teacher, self.temperature)
        return divergences(student, teacher, self.temperature).sum() / len(student)

    def supervised_loss(self, student: Any, targets: Tensor) -> Tensor:
        """Cross-entropy, batch mean in nats; (B, K) logits against (B,) class indices."""
        logits, labels = self._compared(student, targets)
        return F.cross_entropy(logits, labels)

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) log-probability in nats of (B,) class indices under (B, K) logits."""
        logits, labels = self._compared(prediction, targets)
        return F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]

    def score(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) 1.0 where the most likely class is the target."""
        logits, labels = self._compared(prediction, targets)
        return (without_nan(logits, "class").argmax(dim=1) == labels).to(torch.float32)

    def errors(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) 1.0 where the most likely class is not the target."""
        return 1 - self.score(prediction, targets)

    def target(self, prediction: Any) -> Tensor:
        """(B,) most likely classes under (B, K) logits."""
        return without_nan(self._logits(prediction), "class").argmax(dim=1)

    @staticmethod
    def _logits(prediction: Any) -> Tensor:
        return checked_scores(prediction, 2, "class")

    def _compared(self, prediction: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) logits, and (B,) int64 labels that they have."""
        logits = self._logits(prediction)
        return logits, checked_labels(targets, logits.shape[:1], logits.shape[1])


def divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What each class adds to KL(teacher || student), in nats; no gradient reaches the teacher.

    Args:
        student: (B, K, ...) logits.
        teacher: (B, K, ...) logits; a class that it leaves out, by -inf, adds nothing.
        temperature: of the teacher.

    Returns:
        (B, K, ...), of which the sum over classes is the divergence.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    added = target.exp() * (target - F.log_softmax(student, dim=1))
    return torch.where(target == -math.inf, 0, added)
