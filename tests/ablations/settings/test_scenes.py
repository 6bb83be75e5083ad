"""The setting ``scenes``: targets that belong together, networks that see what is there."""

from __future__ import annotations

import json

import torch

from ablations.cells.scores import judge
from ablations.settings.catalogue import load_setting
from ablations.settings.shipped import WEIGHTS
from ablations.zoo.scenes import networks
from ablations.zoo.training import fingerprint
from ppap.evaluation.features import extract
from ppap.files.images import from_uint8


def test_the_targets_of_a_number_belong_together() -> None:
    setting = load_setting("scenes")
    numbers = range(7, 11)
    assert setting.target_images is not None
    assert setting.target_images(numbers).shape == (4, 3, 32, 32)
    labels = setting.tasks["segmentation"].targets(numbers)
    for k, shape in enumerate(setting.tasks["class"].targets(numbers).tolist()):
        counts = torch.bincount(labels[k].flatten(), minlength=11)[1:]
        assert counts[shape] > 0
    depth = setting.tasks["depth"].targets
    assert torch.equal(depth([9])[0], depth(numbers)[2])
    assert torch.equal(depth([9, 7, 9]), depth(numbers)[[2, 0, 2]])


def test_the_weights_are_those_that_the_card_tells_of() -> None:
    folder = WEIGHTS / "scenes"
    facts = json.loads((folder / "zoo.json").read_text())
    assert facts["fingerprint"] == fingerprint(folder, networks())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10 * 2**20


def test_predictors_and_judges_see_what_clean_scenes_show() -> None:
    setting = load_setting("scenes")
    assert setting.target_images is not None
    images = from_uint8(setting.target_images(range(200)))
    seen = extract(setting.extractor(), images)
    for task in setting.tasks.values():
        targets = task.targets(range(200))
        with torch.no_grad():
            predicted = setting.predictor(task.predictor)(images)
        for prediction in (predicted, judge(task, images, seen)):
            assert task.task.score(prediction, targets).mean() > 0.6
