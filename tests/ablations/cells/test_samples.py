"""Which targets samples have, and which scale a record tells."""

from __future__ import annotations

import pytest
import torch

from ablations.cells.guidance import Guidance, Model
from ablations.cells.samples import Samples, record_scale, sampler_name
from ablations.cells.setup import Setup
from ablations.settings.catalogue import load_setting
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.dpm_solver import DPMSolver
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


def test_samplers_that_draw_differently_have_different_names() -> None:
    others = [
        DDIM("8 to 80"), DPMSolver(8, last=80), DPMSolver(8, last=80, order=1), DPMSolver(8),
        DDIM(25, eta=0.5), DDIM(25, clip=False), DDIM(250), DDIM("250"), DDPM(25), DDPM("8 to 80"),
        DDPM(250, "small"),
    ]  # fmt: skip
    names = [sampler_name(sampler) for sampler in (DDIM(25), DDPM(250), *others)]
    assert len(set(names)) == len(names)
    assert names[:4] == ["ddim25", "250", "DDIM(steps='8 to 80')", "DPMSolver(steps=8, last=80)"]


def test_the_time_of_samples_grows_with_the_timesteps_that_are_visited() -> None:
    setup = Setup.of(load_setting("fashion"))
    plain, few, words = (
        Samples(setup, sampler, (), 0, 10).seconds()
        for sampler in (DDIM(25), DPMSolver(8, last=80), DDIM("8 to 80"))
    )
    assert [few, words] == pytest.approx([8 / 25 * plain] * 2)
