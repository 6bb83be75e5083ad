"""Predictions and targets looked at before they are compared: nothing is broadcast or rounded.

A wrong target would otherwise guide towards something else without a word, or end in whatever a
tensor operation has to say of it.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from ppap.compute.known import outlier, values_known
from ppap.compute.precision import widened
from ppap.files.images import NonFiniteError

__all__ = ["check_alike", "checked_labels", "checked_scores", "checked_values", "without_nan"]

logger = logging.getLogger(__name__)

MENDS = {
    1: "give one class index per image",
    2: "take one target (D,) per image from the same model",
    3: "resize the targets",
}
"""What to do about targets of another shape, by the number of dimensions that they should have."""


def checked_scores(prediction: Any, dimensions: int, task: str) -> Tensor:
    """Scores of K classes: (B, K) of images or (B, K, H, W) of their pixels, K at least 2.

    Those in half precision come back in float32, for sums over pixels would overflow.

    Args:
        prediction: what a network gave.
        dimensions: 2 or 4.
        task: whose prediction it is to be, for the message.

    Raises:
        TypeError: if it is no tensor, as of networks with several outputs.
        ValueError: for another shape.
    """
    wanted = "(B, K)" if dimensions == 2 else "(B, K, H, W)"
    found = widened(_tensor(prediction, task))
    if found.ndim != dimensions or found.shape[1] < 2:
        raise ValueError(
            f"{task} predictions are {wanted} scores of at least two classes, got "
            f"{tuple(found.shape)}; name the task that the network was made for"
        )
    if values_known(found) and _are_probabilities(found):
        _tell_of_probabilities(task)
    return found


def checked_labels(targets: Tensor, shape: torch.Size, classes: int, lowest: int = 0) -> Tensor:
    """Labels as int64, each from ``lowest`` to ``classes`` - 1.

    In a traced graph their values are not known: there they are looked at by whoever runs it.

    Args:
        targets: integers of any width.
        shape: that they must have, (B,) or (B, H, W).
        classes: how many there are.
        lowest: 0, or -1 where that marks what is not labelled.

    Raises:
        ValueError: for another shape or dtype, or a label that does not exist.
    """
    _check_shape(targets, shape, "labels")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"labels are integers, got {targets.dtype}; convert them with .long()")
    labels = targets.long()
    if (wrong := outlier(labels, lowest, classes - 1)) is not None:
        raise ValueError(f"label {wrong} is none of the {classes} classes, 0 to {classes - 1}")
    return labels


def checked_values(targets: Tensor, shape: torch.Size, kind: str, unknown: bool = False) -> Tensor:
    """Targets that are real numbers, in float32 if they are in half precision.

    Args:
        targets: floating-point.
        shape: that they must have.
        kind: what they are, for the message.
        unknown: whether NaN may mark what is not known.

    Raises:
        ValueError: for another shape or dtype, infinity, or NaN unless it may be there.
    """
    _check_shape(targets, shape, kind)
    if not targets.is_floating_point():
        raise ValueError(
            f"{kind} are floating-point numbers, got {targets.dtype}; convert them with .float()"
        )
    if values_known(targets):
        fine = targets.isfinite() | targets.isnan() if unknown else targets.isfinite()
        rows = (~fine.flatten(1).all(1)).nonzero()[:, 0].tolist()
        if rows:
            raise ValueError(f"{kind} must be finite; those of row {rows[0]} are not")
    return widened(targets)


def check_alike(student: Tensor, teacher: Tensor) -> None:
    """Refuse a student and a teacher that would be broadcast.

    Raises:
        ValueError: unless their shapes are equal.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student predicts {tuple(student.shape)}, the teacher {tuple(teacher.shape)}"
        )


def without_nan(prediction: Tensor, task: str) -> Tensor:
    """A prediction that is measured, or becomes a target, as it is.

    Of scores that are NaN the first would be the largest, and depth that is NaN would be taken for
    depth that is not known. Infinity may be there: -inf leaves a class out.

    Args:
        prediction: (B, ...).
        task: whose prediction it is, for the message.

    Raises:
        NonFiniteError: for NaN, naming the first row that has any.
    """
    if values_known(prediction) and prediction.isnan().any():
        row = int(prediction.isnan().flatten(1).any(1).nonzero()[0])
        raise NonFiniteError(
            f"the {task} prediction of row {row} holds NaN; look at what the network was shown, or "
            "take it in a wider type"
        )
    return prediction


def _check_shape(targets: Tensor, shape: torch.Size, kind: str) -> None:
    if targets.shape != shape:
        raise ValueError(
            f"{kind} for these predictions have the shape {tuple(shape)}, got "
            f"{tuple(targets.shape)}; {MENDS[len(shape)]}"
        )


def _tensor(prediction: Any, task: str) -> Tensor:
    if not isinstance(prediction, Tensor):
        raise TypeError(
            f"{task} predictions are a tensor, got {type(prediction).__name__}; choose one output "
            "of the network by its name or place, such as SelectOutput(network, 0) of "
            "ppap.predictors.wrappers"
        )
    return prediction


def _are_probabilities(scores: Tensor) -> bool:
    """Whether scores are none below 0, and their sums over the classes are 1."""
    values = scores.detach()
    return bool((values >= 0).all() & ((values.sum(1) - 1).abs() < 1e-3).all()) and len(values) > 0


@functools.cache
def _tell_of_probabilities(task: str) -> None:
    """Once a process: it is almost certainly a mistake, but scores may be anything."""
    logger.warning(
        "%s predictions are probabilities, which are taken for logits and guide next to nothing; "
        "take the network's output before its softmax",
        task,
    )
