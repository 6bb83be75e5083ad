"""Classification: logits against class indices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ppap_kernels import transfer_loss
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ClassTask"]


@dataclass(frozen=True)
class ClassTask:
    """Classification.

    Attributes:
        temperature: the teacher's logits are divided by it before the softmax; 0.25, the
            released code's value, sharpens them. The student's are used as they are.
    """

    temperature: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the teacher's temperature must be positive, got {self.temperature}")

    def transfer_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher || student), batch mean in nats; both (B, K) logits."""
        if student.is_cuda:  # loss and gradient in one pass over the logits
            return transfer_loss(student, teacher, self.temperature)
        target = F.log_softmax(teacher.detach() / self.temperature, dim=1)
        return F.kl_div(
            F.log_softmax(student, dim=1), target, reduction="batchmean", log_target=True
        )

    def supervised_loss(self, student: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, batch mean in nats; (B, K) logits against (B,) class indices."""
        return F.cross_entropy(student, targets)

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) log-probability in nats of (B,) class indices under (B, K) logits."""
        return F.log_softmax(prediction, dim=1).gather(1, targets[:, None])[:, 0]

    def score(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) 1.0 where the most likely class is the target."""
        return (prediction.argmax(dim=1) == targets).to(torch.float32)

    def errors(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """(B,) 1.0 where the most likely class is not the target."""
        return 1 - self.score(prediction, targets)

    def target(self, prediction: Tensor) -> Tensor:
        """(B,) most likely classes under (B, K) logits."""
        return prediction.argmax(dim=1)
