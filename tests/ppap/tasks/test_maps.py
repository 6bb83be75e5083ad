"""What depth and segmentation have in common: gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask


def maps(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("task", [DepthTask(), DepthTask(aligned=False), SegmentationTask()])
def test_gradients_are_those_of_finite_differences(task: Task) -> None:
    prediction = maps(2, 4, 5, 5) if isinstance(task, SegmentationTask) else maps(2, 1, 5, 5)
    targets = task.target(maps(*prediction.shape, seed=1)).clone()
    targets[0, 0, :2] = -1 if isinstance(task, SegmentationTask) else torch.nan
    assert torch.autograd.gradcheck(
        lambda found: task.log_likelihood(found, targets), prediction.requires_grad_()
    )


@pytest.mark.parametrize(
    ("task", "channels"), [(DepthTask(), 1), (DepthTask(aligned=False), 1), (SegmentationTask(), 3)]
)
def test_no_gradient_reaches_a_dense_teacher(task: Task, channels: int) -> None:
    student, teacher = (maps(2, channels, 4, 4, seed=seed).requires_grad_() for seed in (0, 1))
    task.transfer_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="resize the targets"):
        DepthTask().log_likelihood(maps(2, 4, 4), maps(2, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, H, W\)"):
        DepthTask().log_likelihood(maps(2, 3, 4, 4), maps(2, 4, 4))
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="resize the targets"):
        SegmentationTask().log_likelihood(maps(2, 3, 4, 4), labels)
    with pytest.raises(ValueError, match="label 3 is none of the 3 classes"):
        SegmentationTask().log_likelihood(maps(2, 3, 8, 8), labels + 3)
    with pytest.raises(ValueError, match="above 1"):
        DepthTask(ratio=1.0)
    with pytest.raises(ValueError, match="positive"):
        SegmentationTask(0.0)
