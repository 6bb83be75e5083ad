"""What experts learn from: the teacher's predictions, or labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ppap.experts.bank import ExpertBank
from ppap.files.images import Images, from_uint8
from ppap.files.mirroring import Mirrored, with_mirror_images
from ppap.tasks.protocol import SupervisedTask, TransferTask

__all__ = ["Distillation", "Loss", "Objective", "Supervision"]

AT_ONCE = 256
"""Targets that are looked at together."""


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a training.

    Attributes:
        targets: (B,) int64 which images -> what predictions for them are compared with, computed
            in float32, without a graph.
        compare: (predictions (B, ...), targets) -> scalar mean over the batch.
    """

    targets: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


class Objective(Protocol):
    """Where a training's loss comes from."""

    def loss(self, bank: ExpertBank, images: Images) -> Loss:
        """The loss of a training; called once before it, with all (N, C, H, W) uint8 images."""
        ...


@dataclass(frozen=True)
class Distillation:
    """Data-free transfer, the paper's way: follow the teacher's prediction for the clean image.

    The teacher is the bank's unadapted predictor. Where its predictions for all images fit, it
    sees each image once and they are kept on the bank's device. Where they don't, it predicts
    for every batch anew, which gives the same up to rounding and adds a forward pass to a step:
    class scores of a million images are 4 GB, depth maps at 256 x 256 pixels 262 GB.

    Attributes:
        task: how a student is compared with its teacher; by default the bank's task.
        batch: images at a time for the teacher.
        keep: bytes that the predictions for all images may take; 0 to keep none.

    Raises:
        ValueError: for a batch below 1, or a negative ``keep``.
    """

    task: TransferTask | None = None
    batch: int = 500
    keep: int = 2**32

    def __post_init__(self) -> None:
        if self.batch < 1 or self.keep < 0:
            raise ValueError(
                f"a teacher needs a batch >= 1 and keep >= 0, got {self.batch} and {self.keep}"
            )

    def loss(self, bank: ExpertBank, images: Images) -> Loss:
        task = bank.task if self.task is None else self.task
        device = next(bank.parameters()).device

        def predict(chosen: slice | Tensor) -> Any:
            return bank.teacher_prediction(from_uint8(images[chosen].to(device)))

        count = min(self.batch, len(images))
        first = predict(slice(0, count))
        size = _bytes(first) / count * len(images)
        if not _has_rows(first, count) or size > self.keep:
            logging.getLogger(__name__).info(
                "predictions of %s for all images would take %.1f GiB: it predicts for each batch",
                bank.predictor.name,
                size / 2**30,
            )
            return Loss(predict, task.transfer_loss)
        leaves, form = tree_flatten(first)
        taught = [leaf.new_empty((len(images), *leaf.shape[1:])) for leaf in leaves]
        for start in range(0, len(images), self.batch):
            part = slice(start, min(start + self.batch, len(images)))
            found = predict(part) if start else first
            for kept, leaf in zip(taught, tree_leaves(found), strict=True):
                kept[part] = leaf

        def targets(chosen: Tensor) -> Any:
            rows = chosen.to(device)
            return tree_unflatten([kept[rows] for kept in taught], form)

        return Loss(targets, task.transfer_loss)


@dataclass(frozen=True, eq=False)
class Supervision:
    """Labelled training, for comparison.

    Attributes:
        targets: (N, ...) one per image, as the task wants them; maps (N, ..., H, W) are mirrored
            where images are.
        task: how a prediction is compared with its target; by default the bank's task.

    Raises:
        TypeError: for targets that are no tensor.
        ValueError: in training, for another number of targets than of images, or labels that do
            not fit the predictions.
    """

    targets: Tensor
    task: SupervisedTask | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.targets, Tensor):
            raise TypeError(f"targets are a tensor (N, ...), got {type(self.targets).__name__}")

    def loss(self, bank: ExpertBank, images: Images) -> Loss:
        count = len(images.images) if isinstance(images, Mirrored) else len(images)
        if len(self.targets) != count:
            raise ValueError(f"{count} images need as many labels, got {len(self.targets)}")
        device = next(bank.parameters()).device
        targets = self.targets.to(device)
        if isinstance(images, Mirrored):
            targets = with_mirror_images(targets)
        task = bank.task if self.task is None else self.task
        self._check(bank, images, task)
        return Loss(lambda chosen: targets[chosen.to(device)], task.supervised_loss)

    def _check(self, bank: ExpertBank, images: Images, task: SupervisedTask) -> None:
        """Compare the lowest and the highest label with predictions: graphs do not look at them."""
        if self.targets.is_floating_point() or not self.targets.numel():
            return
        lowest, highest = [], []
        for part in torch.split(self.targets, AT_ONCE):  # int64 takes eight times as much as bytes
            labels = part.long().reshape(len(part), -1)
            lowest.append(labels.amin(1))
            highest.append(labels.amax(1))
        rows = torch.stack([torch.cat(lowest).argmin(), torch.cat(highest).argmax()]).cpu()
        device = next(bank.parameters()).device
        prediction = bank.teacher_prediction(from_uint8(images[rows].to(device)))
        task.supervised_loss(prediction, self.targets[rows].to(device))


def _bytes(prediction: Any) -> int:
    """Of all tensors in a prediction."""
    return sum(leaf.nbytes for leaf in tree_leaves(prediction) if isinstance(leaf, Tensor))


def _has_rows(prediction: Any, count: int) -> bool:
    """Whether a prediction, such as a dictionary, holds nothing but tensors of a row per image."""
    leaves = tree_leaves(prediction)
    return all(isinstance(leaf, Tensor) and leaf.shape[:1] == (count,) for leaf in leaves)
