"""A setting of groups: other targets, of the same networks."""

from __future__ import annotations

import torch

from ablations.cells.scores import judge
from ablations.examples import groups  # noqa: F401 registers its settings
from ablations.settings.catalogue import load_setting
from ppap.evaluation.metrics import correct
from ppap.files.images import from_uint8

PAIRS = ((0, 6), (1, 3), (2, 4), (5, 7), (8, 9))
"""Of classes, in the order of ``fashion-5``."""


def test_groups_are_as_probable_as_their_classes_together() -> None:
    base, found = load_setting("fashion-large"), load_setting("fashion-5")
    images, kinds = (part[:20] for part in base.labelled("test"))
    of_kind = {kind: group for group, pair in enumerate(PAIRS) for kind in pair}
    targets = found.labelled("test")[1][:20]
    assert targets.tolist() == [of_kind[int(kind)] for kind in kinds]
    x = from_uint8(images)
    for ours, theirs in (
        (found.predictor("resnet")(x), base.predictor("resnet")(x)),
        (judge(found.tasks["class"], x), base.extractor()(x).logits),
    ):
        probable = theirs.softmax(1)
        together = torch.stack([probable[:, list(pair)].sum(1) for pair in PAIRS], 1)
        torch.testing.assert_close(ours.softmax(1), together)
        assert correct(ours, targets).mean() >= correct(theirs, kinds).mean()


def test_targets_are_of_as_many_classes_as_there_are_groups() -> None:
    for name, count in (("fashion-2", 2), ("fashion-5", 5)):
        setting = load_setting(name)
        assert len(setting.classes) == count
        assert sorted(set(setting.tasks["class"].targets(range(20)).tolist())) == [*range(count)]
        assert set(setting.labelled("test")[1].tolist()) == {*range(count)}
