"""A target is what the task says, or is refused: nothing is broadcast, rounded or looked past."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap.compute.precision import widened
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.files.images import NonFiniteError
from ppap.guidance.guides import LikelihoodGuide, naive_guide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.x0_gradient import X0Gradient
from ppap.tasks import checks
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.networks import images, tiny_denoiser, tiny_dense, tiny_predictor

CLASSES = torch.tensor([0, 3, 4, 1])
LABELS = torch.randint(-1, 5, (4, 8, 8), generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
DENSE = torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(2))
MAPS = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(3))

SAME = {
    "uint8": CLASSES.to(torch.uint8),
    "int16": CLASSES.to(torch.int16),
    "int32": CLASSES.to(torch.int32),
    "a list": [0, 3, 4, 1],
    "a tuple of tensors": tuple(CLASSES),
    "numpy's": CLASSES.numpy().astype(np.uint16),
    "a list of numpy's numbers": list(CLASSES.numpy()),
}


@pytest.mark.parametrize("targets", SAME.values(), ids=SAME)
def test_integers_of_any_kind_are_labels(targets: Any) -> None:
    model = tiny_predictor()
    state = State(images(4), torch.zeros(4, dtype=torch.int64))
    expected = naive_guide(model, ClassTask(), CLASSES)(state)
    assert torch.equal(naive_guide(model, ClassTask(), targets)(state), expected)


REFUSED: dict[str, tuple[Task, Any, Any]] = {
    "no such class": (ClassTask(), LOGITS, torch.full((4,), 5)),
    "a negative class": (ClassTask(), LOGITS, torch.tensor([0, 1, -1, 2])),
    "cross-entropy's own mark": (ClassTask(), LOGITS, torch.tensor([0, -100, 1, 2])),
    "a column": (ClassTask(), LOGITS, CLASSES[:, None]),
    "one-hot": (ClassTask(), LOGITS, torch.nn.functional.one_hot(CLASSES, 5)),
    "soft labels": (ClassTask(), LOGITS, LOGITS.softmax(1)),
    "floats": (ClassTask(), LOGITS, CLASSES.float()),
    "truth values": (ClassTask(), LOGITS, CLASSES > 1),
    "half of them": (ClassTask(), LOGITS, CLASSES[:2]),
    "one for a batch": (ClassTask(), LOGITS, CLASSES[:1]),
    "classes of a depth map": (ClassTask(), MAPS[:, None], torch.zeros(4, dtype=torch.int64)),
    "classes of a bare map": (ClassTask(), MAPS, torch.zeros(4, dtype=torch.int64)),
    "classes of pixels": (ClassTask(), DENSE, CLASSES),
    "a single score": (ClassTask(), LOGITS[:, :1], torch.zeros(4, dtype=torch.int64)),
    "labels of a depth map": (SegmentationTask(), MAPS[:, None], LABELS.clamp(0, 0)),
    "labels of an image": (SegmentationTask(), LOGITS, CLASSES),
    "a label beyond": (SegmentationTask(), DENSE, LABELS + 1),
    "255 for unlabelled": (SegmentationTask(), DENSE, LABELS.where(LABELS > -1, 255)),
    "another mark": (SegmentationTask(), DENSE, LABELS - 1),
    "real labels": (SegmentationTask(), DENSE, LABELS.double()),
    "one map for all": (SegmentationTask(), DENSE, LABELS[:1]),
    "a channel of labels": (SegmentationTask(), DENSE, LABELS[:, None]),
    "depth as labels": (DepthTask(), MAPS, LABELS),
    "infinite depth": (DepthTask(), MAPS, MAPS.where(MAPS < 0.9, math.inf)),
    "depth of another size": (DepthTask(), MAPS, MAPS[:, :4]),
    "a channel of depth": (DepthTask(), MAPS[:, None], MAPS[:, None]),
    "depth of class scores": (DepthTask(), LOGITS, LOGITS),
    "several maps": (DepthTask(), DENSE, MAPS),
    "embeddings with NaN": (SimilarityTask(), LOGITS, LOGITS.where(LOGITS > -1, math.nan)),
    "whole embeddings": (SimilarityTask(), LOGITS, LOGITS.round().long()),
    "an embedding for all": (SimilarityTask(), LOGITS, LOGITS[:1]),
    "embeddings of a map": (SimilarityTask(), MAPS, MAPS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_targets_and_predictions_are_refused_by_every_use_of_a_task(case: str) -> None:
    task, prediction, targets = REFUSED[case]
    for use in (task.log_likelihood, task.supervised_loss, task.score, task.errors):
        with pytest.raises(ValueError, match=r"class|label|depth|embeddings|similarity") as error:
            use(prediction, targets)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", [ClassTask(), DepthTask(), SegmentationTask(), SimilarityTask()])
def test_a_student_is_not_broadcast_to_its_teacher(task: Task) -> None:
    both = {ClassTask: LOGITS, SegmentationTask: DENSE, DepthTask: MAPS, SimilarityTask: LOGITS}
    student = both[type(task)]
    assert task.transfer_loss(student, student + 1).ndim == 0
    for teacher in (student[:1], student[..., :3]):
        with pytest.raises(ValueError, match=r"teacher|shape"):
            task.transfer_loss(student, teacher)


def test_an_output_that_is_no_tensor_is_named() -> None:
    class Output(dict[str, Tensor]):
        pass

    for task, targets in ((ClassTask(), CLASSES), (SegmentationTask(), LABELS)):
        with pytest.raises(TypeError, match="got Output; choose one output"):
            task.log_likelihood(Output(logits=LOGITS), targets)


MEASURED: list[tuple[Task, Tensor, Tensor]] = [
    (ClassTask(), LOGITS, CLASSES),
    (SegmentationTask(), DENSE, LABELS),
    (DepthTask(), MAPS, MAPS),
    (DepthTask(aligned=False), MAPS, MAPS),
    (SimilarityTask(), LOGITS, LOGITS),
]


@pytest.mark.parametrize(("task", "prediction", "targets"), MEASURED)
def test_a_prediction_with_nan_has_no_score_and_is_no_target(
    task: Task, prediction: Tensor, targets: Tensor
) -> None:
    """Of such scores the first would be the top one, and such depth would count as unknown."""
    broken = prediction.clone()
    broken[2].flatten()[3] = math.nan
    uses = (task.target, *(partial(use, targets=targets) for use in (task.score, task.errors)))
    for use in uses:
        use(prediction)
        with pytest.raises(NonFiniteError, match="prediction of row 2 holds NaN"):
            use(broken)
    assert task.log_likelihood(broken, targets).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (ClassTask(), (2, 5)),
        (SegmentationTask(), (2, 3, 300, 300)),
        (DepthTask(), (2, 300, 300)),
        (DepthTask(aligned=False), (2, 300, 300)),
        (SimilarityTask(), (2, 64)),
    ],
)
def test_predictions_in_half_precision_are_compared_in_float32(
    task: Task, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Sums over so many pixels are infinite in float16, and rounded to noise in bfloat16."""
    made = torch.Generator().manual_seed(0)
    prediction = (torch.rand(shape, generator=made) * 1000).to(dtype)
    other = (torch.rand(shape, generator=made) * 1000).to(dtype)
    targets, wide = task.target(other), task.target(other.float())
    for use in (task.log_likelihood, task.supervised_loss, task.score, task.errors):
        found, expected = use(prediction, targets), use(prediction.float(), wide)
        assert torch.equal(found.float(), expected)
        if isinstance(task, DepthTask | SimilarityTask):
            assert torch.equal(use(prediction, other), expected)
    pair = (
        task.transfer_loss(prediction, other),
        task.transfer_loss(*map(widened, (prediction, other))),
    )
    assert torch.equal(*pair)
    assert pair[0].isfinite()


def test_scores_that_leave_classes_out_are_measured() -> None:
    some = LOGITS.clone()
    some[:, 2:] = -math.inf
    assert torch.equal(ClassTask().target(some), LOGITS[:, :2].argmax(1))


@pytest.mark.parametrize("task", [ClassTask(), SegmentationTask()])
def test_a_class_that_the_teacher_leaves_out_teaches_nothing(task: Task) -> None:
    """0 log 0 is 0: the divergence is that over the classes which are left, and not NaN."""
    shape = (2, 5) if isinstance(task, ClassTask) else (2, 5, 3, 3)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    student.requires_grad_()
    apart = task.transfer_loss(student[:, :3], teacher[:, :3])
    wanted = torch.autograd.grad(apart, student)[0]
    teacher[:, 3:] = -math.inf
    loss = task.transfer_loss(torch.cat([student[:, :3], teacher[:, 3:]], 1), teacher)
    torch.testing.assert_close(loss, apart)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], wanted)
    # What the student gives to the other classes it does not give to those that are left.
    given = student.log_softmax(1)[:, :3].exp().sum(1).log().mean()
    torch.testing.assert_close(task.transfer_loss(student, teacher), apart - given)


def test_unknown_depth_and_unlabelled_pixels_stay_allowed() -> None:
    holes = MAPS.where(MAPS > 0.5, math.nan)
    assert DepthTask().log_likelihood(MAPS, holes).isfinite().all()
    assert SegmentationTask().log_likelihood(DENSE, LABELS).isfinite().all()
    assert SegmentationTask().score(DENSE, LABELS.to(torch.int8)).isfinite().all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_a_tasks_number_is_checked_where_it_is_given(wrong: float) -> None:
    for make in (ClassTask, SegmentationTask, SimilarityTask, lambda v: DepthTask(ratio=v)):
        with pytest.raises(ValueError, match=r"positive|above 1"):
            make(wrong)


def test_a_depth_bank_is_not_guided_as_a_classifier() -> None:
    """A predictor without a task is a classifier; its maps then show that it is none."""
    bank = ExpertBank(tiny_dense(1), 2, Adapter((Biases(),)))
    guides = [
        bank.guide(0, 5.0),
        naive_guide(bank.predictor, ClassTask(), 0, 5.0),
        X0Gradient(ImageLikelihood(bank.predictor, ClassTask(), [0, 0]), 5.0),
    ]
    for guide in guides:
        with pytest.raises(ValueError, match=r"\(B, K\).*got \(2, 1, 8, 8\); name the task"):
            sample(tiny_denoiser(), 2, guide, DDIM(2))


@pytest.mark.parametrize("wrong", ["garment", ["a", "b"], None, [torch.zeros(2), torch.zeros(3)]])
def test_what_is_no_target_at_all_is_refused_where_it_is_given(wrong: Any) -> None:
    with pytest.raises(TypeError, match="targets are a number, a tensor"):
        LikelihoodGuide(lambda x, t: x.mean((2, 3)), ClassTask(), wrong)


@pytest.mark.parametrize("wrong", ["7.5", None, {"scale": 1.0}])
def test_what_is_no_scale_at_all_is_refused_where_it_is_given(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a guidance scale is a number"):
        LikelihoodGuide(lambda x, t: x.mean((2, 3)), ClassTask(), 0, wrong)


def test_a_scale_for_each_sample_reaches_its_own_sample_alone() -> None:
    """As many samples as the image is wide, where a tensor would broadcast along the width."""
    scales = torch.zeros(8)
    scales[3] = 500.0
    guide = naive_guide(tiny_predictor(), ClassTask(), 0, scales)
    plain, guided = (sample(tiny_denoiser(), 8, g, DDIM(2)) for g in (None, guide))
    changed = (guided - plain).flatten(1).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, False, False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("task", "scores"),
    [(ClassTask(), torch.randn(3, 5)), (SegmentationTask(), torch.randn(3, 5, 4, 4))],
)
def test_probabilities_in_place_of_logits_are_told_once(
    task: Task, scores: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    checks._tell_of_probabilities.cache_clear()
    targets = task.target(scores)
    task.log_likelihood(scores, targets)
    task.log_likelihood(scores.log_softmax(1), targets)
    task.log_likelihood(torch.zeros_like(scores), targets)
    assert not caplog.records
    for _ in range(2):
        task.log_likelihood(scores.softmax(1), targets)
    (message,) = caplog.messages
    assert "are probabilities" in message
