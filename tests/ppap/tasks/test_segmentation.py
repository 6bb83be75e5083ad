"""Segmentation: a classification of every labelled pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ppap.tasks.classes import ClassTask
from ppap.tasks.segmentation import SegmentationTask


def maps(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


def test_known_intersection_over_union() -> None:
    # Label 0: 3 of 5 pixels in common; label 1: 1 of 3; label 2 only predicted, 0 of 1.
    wanted = torch.tensor([[[0, 0, 0, 0], [1, 1, -1, -1]]])
    found = torch.tensor([[[0, 0, 0, 2], [0, 1, 3, 3]]])
    logits = torch.nn.functional.one_hot(found, 4).movedim(-1, 1).double()
    task = SegmentationTask()
    assert task.score(logits, wanted).item() == pytest.approx((3 / 5 + 1 / 2 + 0) / 3)
    assert task.errors(logits, wanted).item() == pytest.approx(2 / 6)
    assert torch.equal(task.target(logits), found)
    assert task.score(logits, found).item() == 1


def test_intersection_over_union_is_that_of_each_label_by_itself() -> None:
    logits = maps(4, 6, 5, 7)
    labels = torch.randint(-1, 6, (4, 5, 7), generator=torch.Generator().manual_seed(1))
    labels[3] = -1
    expected = []
    for found, wanted in zip(logits.argmax(1), labels, strict=True):
        known = wanted >= 0
        pairs = [((found == k) & known, wanted == k) for k in range(6)]
        held = [(int((a & b).sum()), int((a | b).sum())) for a, b in pairs if (a | b).any()]
        expected.append(sum(both / either for both, either in held) / max(len(held), 1))
    assert SegmentationTask().score(logits, labels).tolist() == pytest.approx(expected)


def test_a_score_takes_no_more_memory_than_the_prediction() -> None:
    """Maps of whole numbers per class would take 16 times that of the logits, in float32."""
    logits, labels = torch.rand(2, 150, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.numel() * made.element_size())
            return made

    with Sizes():
        SegmentationTask().score(logits, labels)
    assert largest <= logits.numel() * logits.element_size()


def test_segmentation_is_classification_of_every_pixel() -> None:
    student, teacher = maps(2, 5, 3, 4), maps(2, 5, 3, 4, seed=1)
    labels = teacher.argmax(1)
    flat = [part.movedim(1, -1).reshape(-1, 5) for part in (student, teacher)]
    dense, single = SegmentationTask(0.5), ClassTask(0.5)
    torch.testing.assert_close(dense.transfer_loss(student, teacher), single.transfer_loss(*flat))
    expected = single.log_likelihood(flat[0], labels.reshape(-1)).view(2, -1).mean(1)
    torch.testing.assert_close(dense.log_likelihood(student, labels), expected)
    torch.testing.assert_close(dense.supervised_loss(student, labels), -expected.mean())


def test_unlabelled_pixels_do_not_count() -> None:
    logits, labels = maps(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, :, 2:] = -1
    cut = SegmentationTask().log_likelihood(logits[..., :2], labels[..., :2])
    torch.testing.assert_close(SegmentationTask().log_likelihood(logits, labels), cut)
    nothing = torch.full_like(labels, -1)
    assert SegmentationTask().log_likelihood(logits, nothing).item() == 0


def test_segmentation_can_be_traced() -> None:
    """As the fast path does, where values of targets are not known."""
    task, logits = SegmentationTask(), maps(2, 3, 4, 4)
    labels = task.target(maps(2, 3, 4, 4, seed=1))

    def likelihood(found: Tensor, wanted: Tensor) -> Tensor:  # make_fx miscounts a method's
        return task.log_likelihood(found, wanted)

    graph = make_fx(likelihood)(logits, labels)
    torch.testing.assert_close(graph(logits, 2 - labels), task.log_likelihood(logits, 2 - labels))


def test_intersections_over_unions_are_counted_image_by_image_under_vmap_and_on_meta() -> None:
    task, logits = SegmentationTask(), maps(3, 4, 5, 6)
    labels = maps(3, 5, 5, 6, seed=1).argmax(1) - 1

    def one(found: Tensor, wanted: Tensor) -> Tensor:
        return task.score(found[None], wanted[None])[0]

    assert torch.equal(torch.func.vmap(one)(logits, labels), task.score(logits, labels))
    assert task.score(logits.to("meta"), labels.to("meta")).shape == (3,)
