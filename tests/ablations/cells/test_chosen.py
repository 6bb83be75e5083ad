"""The choice of a refinement sees samples of its own, by the predictor without experts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from ablations.cells import chosen
from ablations.cells.chosen import ChosenRefinement
from ablations.cells.guidance import Model
from ablations.cells.refined import Refined, Refinement
from ablations.cells.setup import Setup
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ppap.diffusion.ddim import DDIM
from ppap.fast.best import Best
from ppap.fast.presets import Preset
from ppap.fast.sampling import sample

SETTING = load_setting("fashion")
HELD = Refinement(power=0.5)
CHOICE = ChosenRefinement(
    Setup.of(SETTING), Model("resnet"), DDIM(2), (("plain", Refinement()), ("held back", HELD)),
    (2.0, 8.0), 700, 12,
)  # fmt: skip


def nothing(cell: Any) -> Artifact:
    raise AssertionError(f"{cell.label()} was asked for")


def test_the_choice_is_among_presets_and_by_the_predictor_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def noted(denoiser: Any, guide: Any, score: Any, seeds: Any, **options: Any) -> Best:
        seen.update(options, guide=guide, score=score, seeds=seeds)
        return Best("held back", options["presets"]["held back"], 8.0, 0.1, ())

    monkeypatch.setattr(chosen, "best_preset", noted)
    meta = CHOICE.compute(nothing).meta
    assert (meta["name"], meta["refinement"]) == ("held back", asdict(HELD))
    assert seen["seeds"] == range(700, 712)
    assert seen["presets"] == {
        "plain": Preset(DDIM(2)), "held back": Preset(DDIM(2), signal_power=0.5),
    }  # fmt: skip
    assert seen["scales"] == (2.0, 8.0)
    targets = SETTING.tasks["class"].targets(SETTING.order.numbers(700, range(12)))
    assert torch.equal(seen["guide"](3.0).targets, targets)
    assert seen["guide"](3.0).scale == 3.0
    images = torch.rand(12, 1, 28, 28) * 2 - 1
    right = SETTING.predictor("resnet")(images).argmax(1) == targets
    assert torch.equal(seen["score"](images), right.float())


def test_what_was_tried_is_kept() -> None:
    meta = CHOICE.compute(nothing).meta
    assert [(trial["preset"], trial["scale"]) for trial in meta["tried"]] == [
        ("plain", 2.0), ("plain", 8.0), ("held back", 2.0), ("held back", 8.0),
    ]  # fmt: skip
    targets = SETTING.tasks["class"].targets(SETTING.order.numbers(700, range(12)))
    guide = Refined(CHOICE.model, HELD).guide(CHOICE.setup, nothing, targets, 8.0)
    images = sample(SETTING.denoiser(), range(700, 712), guide, DDIM(2), batch=SETTING.batch)
    right = SETTING.predictor("resnet")(images).argmax(1) == targets
    assert meta["tried"][-1]["agreement"] == pytest.approx(float(right.float().mean()))
