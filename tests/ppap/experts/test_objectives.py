"""Where losses come from: a teacher's kept predictions, a teacher asked anew, labels."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.diffusion.schedule import linear_schedule
from ppap.experts import objectives
from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation, Objective, Supervision
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.images import from_uint8, to_uint8
from ppap.files.mirroring import Mirrored
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.segmentation import SegmentationTask
from tests.ppap.networks import images, tiny_dense, tiny_predictor

SCHEDULE = linear_schedule()
DATA = to_uint8(images(20, 5).clamp(-1, 1))
ANEW = Distillation(ClassTask(), keep=0)
WITHOUT_BIASES = Adapter(
    tuple(part for part in ppap_adapter(2, 2.0).parts if not isinstance(part, Biases))
)
"""A bias before a batch norm has no gradient but rounding, which Adam makes whole steps of."""


def trained(objective: Objective, **options: Any) -> Tensor:
    training = Training(steps=8, batch=6, learning_rate=1e-2, **options)
    bank = ExpertBank(tiny_predictor(), 2, WITHOUT_BIASES)
    transfer(bank, SCHEDULE, DATA, objective, training)
    return torch.cat([parameter.flatten() for parameter in bank.experts.parameters()])


@pytest.mark.parametrize("options", [{}, {"start": "base", "order": "together"}])
def test_a_teacher_asked_for_every_batch_teaches_what_a_kept_one_does(
    options: dict[str, Any],
) -> None:
    kept = trained(Distillation(ClassTask()), **options)
    torch.testing.assert_close(trained(ANEW, **options), kept, atol=1e-5, rtol=1e-4)


def test_predictions_are_kept_where_they_fit_and_otherwise_made_as_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2))
    seen: list[int] = []
    plain = bank.teacher_prediction

    def count(x: Tensor) -> Tensor:
        seen.append(len(x))
        return plain(x)

    monkeypatch.setattr(bank, "teacher_prediction", count)
    chosen = torch.tensor([17, 3])
    size = 20 * 5 * 4  # images, classes, bytes of a float
    loss = Distillation(ClassTask(), batch=8, keep=size).loss(bank, DATA)
    assert seen == [8, 8, 4]
    kept = loss.targets(chosen)
    assert seen == [8, 8, 4]

    with caplog.at_level(logging.INFO):
        loss = Distillation(ClassTask(), batch=8, keep=size - 1).loss(bank, DATA)
    assert "it predicts for each batch" in caplog.text
    assert seen == [8, 8, 4, 8]
    torch.testing.assert_close(loss.targets(chosen), kept)
    assert seen[4:] == [2]


@pytest.mark.parametrize(("rows", "asked"), [(True, [8, 8, 4]), (False, [8, 3])])
def test_predictions_of_several_tensors_are_kept_in_their_form(
    rows: bool, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no row per image is predicted for every batch."""
    bank = ExpertBank(tiny_predictor(), 1, ppap_adapter(2))
    plain = bank.teacher_prediction
    seen: list[int] = []

    def several(x: Tensor) -> dict[str, Any]:
        seen.append(len(x))
        scores = plain(x)
        return {"scores": scores, "more": (scores.sum(1), x[:, 0] if rows else torch.tensor(1.0))}

    monkeypatch.setattr(bank, "teacher_prediction", several)
    chosen = torch.tensor([17, 3, 17])
    found = Distillation(ClassTask(), batch=8).loss(bank, DATA).targets(chosen)
    assert seen == asked
    torch.testing.assert_close(found, several(from_uint8(DATA[chosen])))


def test_a_teacher_is_asked_in_float32_whatever_the_students_compute_in() -> None:
    bank = ExpertBank(tiny_predictor(), 1, ppap_adapter(2)).train()
    targets = ANEW.loss(bank, DATA).targets(torch.arange(4))
    assert targets.dtype == torch.float32
    assert not targets.requires_grad
    torch.testing.assert_close(targets, bank.teacher_prediction(from_uint8(DATA[:4])))


def test_flips_show_every_image_both_ways_round(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = ExpertBank(tiny_predictor(), 1, ppap_adapter(2))
    seen: list[Tensor] = []
    plain = bank.teacher_prediction

    def look(x: Tensor) -> Tensor:
        seen.append(x)
        return plain(x)

    monkeypatch.setattr(bank, "teacher_prediction", look)
    transfer(bank, SCHEDULE, DATA, training=Training(steps=1, batch=4), flips=True)
    shown = to_uint8(torch.cat(seen))
    assert torch.equal(shown, torch.cat([DATA, DATA.flip(-1)]))


def test_labels_follow_their_flipped_images() -> None:
    bank = ExpertBank(tiny_dense(1), 1, ppap_adapter(2), task=DepthTask())
    maps = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = Supervision(maps).loss(bank, Mirrored(DATA)).targets(torch.tensor([3, 23]))
    assert torch.equal(targets, torch.stack([maps[3], maps[3].flip(-1)]))
    with pytest.raises(ValueError, match="20 images need as many labels, got 3"):
        Supervision(maps[:3]).loss(bank, Mirrored(DATA))


@pytest.mark.parametrize("options", [{"batch": 0}, {"keep": -1}])
def test_a_teacher_needs_a_batch_and_room(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"batch >= 1 and keep >= 0"):
        Distillation(**options)


@pytest.mark.parametrize(
    ("predictor", "task", "wrong"),
    [
        (tiny_predictor(), ClassTask(), -100),  # which PyTorch's own losses leave out
        (tiny_predictor(), ClassTask(), 5),
        (tiny_dense(3), SegmentationTask(), -2),
        (tiny_dense(3), SegmentationTask(), 255),
    ],
)
@pytest.mark.parametrize("order", ["ascending", "together"])
def test_a_label_that_does_not_exist_is_found_before_any_step(
    predictor: Predictor, task: Any, wrong: int, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "AT_ONCE", 8)
    shape = (20,) if isinstance(task, ClassTask) else (20, 8, 8)
    labels = torch.ones(shape).long()
    labels.view(-1)[-1] = wrong
    bank = ExpertBank(predictor, 2, ppap_adapter(2), task)
    training, steps = Training(steps=2, batch=2, start="base", order=order), []
    with pytest.raises(ValueError, match=f"label {wrong} is none of the"):
        transfer(
            bank, SCHEDULE, DATA, Supervision(labels), training,
            progress=lambda *_, **__: steps.append(1),
        )  # fmt: skip
    assert not steps
