"""What a prediction means: three small protocols, for guiding, for transfer and for measuring.

A task of your own implements the ones it is used for. Guiding by a quantity of your choice takes
one method, :meth:`GuidanceTask.log_likelihood`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

__all__ = ["GuidanceTask", "MeasuredTask", "SupervisedTask", "Task", "TransferTask"]


class GuidanceTask(Protocol):
    """What guiding needs: how well a prediction agrees with what is asked for."""

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) log p(target | prediction), up to a constant; differentiable in the prediction."""
        ...


class TransferTask(Protocol):
    """What knowledge transfer needs: how far a student is from its teacher."""

    def transfer_loss(self, student: Any, teacher: Any) -> Tensor:
        """Scalar batch mean; no gradient reaches the teacher's prediction."""
        ...


class MeasuredTask(Protocol):
    """What measuring needs: how good a prediction is."""

    def score(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) float32: the task's per-image score, higher is better."""
        ...

    def errors(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) float32: how far off a prediction is, 0 for none."""
        ...


class SupervisedTask(Protocol):
    """What training on labels needs, which the paper's own method does without."""

    def supervised_loss(self, student: Any, targets: Tensor) -> Tensor:
        """Scalar batch mean: how far the student's prediction is from the labels."""
        ...


class Task(GuidanceTask, TransferTask, MeasuredTask, SupervisedTask, Protocol):
    """All of these, as the library's own tasks have them."""

    def target(self, prediction: Any) -> Tensor:
        """(B, ...) the target that a prediction for other images makes."""
        ...
