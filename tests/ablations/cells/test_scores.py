"""How samples are judged: by all tasks' independent networks, and by how far pairs differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ablations.cells.samples import Samples
from ablations.cells.scores import Score, judge
from ablations.cells.setup import Setup
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ppap.diffusion.ddim import DDIM

SAMPLES = Samples(Setup.of(load_setting("scenes")), DDIM(25), (), 50, 40)


def scored(images: np.ndarray[Any, Any]) -> Artifact:
    drawn = Artifact({"scales": [1.0]}, {"images": images})
    return Score(SAMPLES).compute(lambda cell: drawn)


def test_the_scenes_that_targets_are_taken_from_score_best() -> None:
    setting = load_setting("scenes")
    assert setting.target_images is not None
    images = setting.target_images(range(50, 70)).repeat_interleave(2, 0).numpy()
    right, wrong = scored(images).meta, scored(images[::-1].copy()).meta
    assert right["accuracy"] > 0.7 > wrong["accuracy"]
    assert right["mean_iou"] > 0.6 > wrong["mean_iou"]
    assert right["depth_rmse"] < 0.5 * wrong["depth_rmse"]
    assert right["depth_delta_1"] > 0.9
    assert right["pixel_error"] < 0.5 * wrong["pixel_error"]
    assert right["diversity"] == 0  # each target twice
    mixed = scored(images.reshape(20, 2, 3, 32, 32).swapaxes(0, 1).reshape(images.shape).copy())
    assert mixed.meta["diversity"] == pytest.approx(1, abs=0.3)


def test_a_setting_of_classes_is_judged_by_accuracy_alone() -> None:
    samples = Samples(Setup.of(load_setting("fashion")), DDIM(25), (), 50, 12)
    black = np.zeros((12, 1, 32, 32), np.uint8)
    made = Score(samples).compute(lambda cell: Artifact({"scales": []}, {"images": black}))
    assert set(made.arrays) == {"accuracy", "features"}
    # Twelve equal images are of one class; targets are the classes in turn.
    assert made.arrays["accuracy"].sum() in (1, 2)
    assert made.meta["accuracy"] == made.arrays["accuracy"].mean()
    assert made.meta["count"] == 12


def test_a_task_without_a_judge_needs_the_extractors_logits() -> None:
    task = load_setting("fashion").tasks["class"]
    with pytest.raises(ValueError, match="extractor"):
        judge(task, torch.zeros(1, 1, 32, 32))
