"""Which targets samples have, and which scale a record tells."""

from __future__ import annotations

import torch

from ablations.cells.guidance import Guidance, Model
from ablations.cells.samples import Samples, record_scale
from ablations.cells.setup import Setup
from ablations.settings.catalogue import load_setting
from ppap.diffusion.ddim import DDIM
from ppap.guidance.guides import SumOfGuides


def never(cell: object) -> None:
    raise AssertionError("nothing is read")


def test_samples_of_scenes_share_their_target_in_pairs() -> None:
    setting = load_setting("scenes")
    samples = Samples(Setup.of(setting), DDIM(25), (), 50, 40)
    expected = torch.cat([setting.tasks["class"].targets([50 + i // 2]) for i in range(40)])
    assert torch.equal(samples.targets("class"), expected)


def test_several_models_guide_towards_the_same_scenes_as_each_alone() -> None:
    setting = load_setting("scenes")
    parts = tuple(
        Guidance(Model(task.predictor, task=name), 2.0) for name, task in setting.tasks.items()
    )
    samples = Samples(Setup.of(setting), DDIM(25), parts, 50, 4)
    together = samples.guide(never, samples.seeds)  # type: ignore[arg-type]
    assert isinstance(together, SumOfGuides)
    for part, guide in zip(parts, together.parts, strict=True):
        alone = Samples(Setup.of(setting), DDIM(25), (part,), 50, 4)
        same = alone.guide(never, alone.seeds)  # type: ignore[arg-type]
        assert torch.equal(same.targets, guide.targets)  # type: ignore[union-attr]
    assert Samples(Setup.of(setting), DDIM(25), (), 50, 4).guide(never, range(4)) is None  # type: ignore[arg-type]


def test_a_record_tells_the_scale_of_one_guide() -> None:
    assert record_scale([]) == 0
    assert record_scale([4.0]) == 4
    assert record_scale([4.0, 5.0]) is None
