"""What experts learn from: the teacher's predictions, or labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ppap.experts.bank import ExpertBank
from ppap.files.images import Images, from_uint8
from ppap.tasks.protocol import SupervisedTask, TransferTask

__all__ = ["Distillation", "Loss", "Objective", "Supervision"]

Loss = Callable[[Any, Tensor], Tensor]
"""(Predictions for noisy images (B, ...), (B,) int64 which images they are) -> scalar mean."""


class Objective(Protocol):
    """Where a training's loss comes from."""

    def loss(self, bank: ExpertBank, images: Images) -> Loss:
        """The loss of a training; called once before it, with all (N, C, H, W) uint8 images."""
        ...


@dataclass(frozen=True)
class Distillation:
    """Data-free transfer, the paper's way: follow the teacher's prediction for the clean image.

    The teacher, which is the bank's unadapted predictor, sees each image once; its predictions
    are kept.

    Attributes:
        task: how a student is compared with its teacher; by default the bank's task.
        batch: images at a time for the teacher.
    """

    task: TransferTask | None = None
    batch: int = 500

    def loss(self, bank: ExpertBank, images: Images) -> Loss:
        device = next(bank.parameters()).device
        starts = range(0, len(images), self.batch)
        parts = (images[start : start + self.batch] for start in starts)
        taught = torch.cat([bank.teacher_prediction(from_uint8(part).to(device)) for part in parts])
        task = bank.task if self.task is None else self.task

        def loss(prediction: Any, chosen: Tensor) -> Tensor:
            return task.transfer_loss(prediction, taught[chosen.to(device)])

        return loss


@dataclass(frozen=True, eq=False)
class Supervision:
    """Labelled training, for comparison.

    Attributes:
        targets: (N, ...) one per image, as the task wants them.
        task: how a prediction is compared with its target; by default the bank's task.

    Raises:
        TypeError: for targets that are no tensor.
        ValueError: in training, for another number of targets than of images.
    """

    targets: Tensor
    task: SupervisedTask | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.targets, Tensor):
            raise TypeError(f"targets are a tensor (N, ...), got {type(self.targets).__name__}")

    def loss(self, bank: ExpertBank, images: Images) -> Loss:
        if len(self.targets) != len(images):
            raise ValueError(f"{len(images)} images need as many labels, got {len(self.targets)}")
        device = next(bank.parameters()).device
        targets = self.targets.to(device)
        task = bank.task if self.task is None else self.task

        def loss(prediction: Any, chosen: Tensor) -> Tensor:
            return task.supervised_loss(prediction, targets[chosen.to(device)])

        return loss
