"""How learning rates are chosen: by the loss on images that no training has seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ablations.cells.experts import Experts
from ablations.cells.results import About
from ablations.cells.setup import Setup
from ablations.cells.synthesis import Synthesis, TrainingData
from ablations.cells.validation import TunedRate, Validation
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ppap.diffusion.ddim import DDIM
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training

SETUP = Setup.of(load_setting("fashion"))
BANK = Experts(
    SETUP, "resnet", NoiseRanges.equal(2), ppap_adapter(2, 1.0), Training(2, 8), TrainingData()
)
HELD_OUT = Synthesis(SETUP, DDIM(25), 7, 30)
STAMP = {"created": "2026", "commit": "c", "dirty": False, "wall_seconds": 1.0, "hardware": {}}


def untrained(cell: Cell) -> Artifact:
    """Experts as they start, and test images in the place of synthetic ones."""
    if isinstance(cell, Experts):
        state = cell.blank(untrained).experts.state_dict()
        return Artifact({}, {key: value.numpy() for key, value in state.items()})
    return Artifact({}, {"images": load_setting("fashion").labelled("test")[0][:30].numpy()})


def test_an_untrained_bank_agrees_with_its_teacher_where_there_is_no_noise() -> None:
    quiet = Validation(BANK, HELD_OUT, 30, (0,)).compute(untrained).meta
    assert quiet["score"] > 0.9
    noisy = Validation(BANK, HELD_OUT, 30, (0, 900)).compute(untrained).meta
    assert noisy["scores"][0] == quiet["score"] > noisy["scores"][1]
    assert noisy["losses"][1] > 10 * quiet["loss"]
    assert noisy["loss"] == pytest.approx(sum(noisy["losses"]) / 2)


def test_labelled_experts_are_held_against_the_labels_of_the_test_split() -> None:
    validation = Validation(BANK, None, 40, (0,))
    found = validation.compute(untrained).meta
    images, labels = load_setting("fashion").labelled("test")
    expected = SETUP.load().predictor("resnet")(images[:40].float() / 127.5 - 1)
    right = (expected.argmax(1) == labels[:40]).float().mean()
    assert found["score"] == pytest.approx(float(right), abs=0.06)  # the timestep has some noise
    loss = torch.nn.functional.cross_entropy(expected, labels[:40])
    assert found["loss"] == pytest.approx(float(loss), rel=0.3)
    assert set(validation.inputs()) == {BANK}


def tuned(*losses: float) -> dict[str, Any]:
    rates = tuple(10.0**-k for k in range(len(losses), 0, -1))
    rows = []
    known: dict[str, Artifact] = {}
    for rate, loss in zip(rates, losses, strict=True):
        row = []
        for seed, off in enumerate((-0.1, 0.1)):
            bank = replace(BANK, training=replace(BANK.training, learning_rate=rate, seed=seed))
            row.append(Validation(bank, HELD_OUT, 30))
            known[row[-1].key] = Artifact({"loss": loss + off, "score": 1 - loss})
            known[bank.key] = Artifact({"provenance": STAMP, "cell": {"kind": "Experts"}})
        rows.append(tuple(row))
    cell = TunedRate(SETUP, About("tuning", "smoke", "ppap", "resnet"), rates, tuple(rows))
    load: Callable[[Cell], Artifact] = lambda needed: known[needed.key]  # noqa: E731
    record: dict[str, Any] = cell.compute(load).meta["record"]
    return record


def test_the_rate_of_the_least_mean_loss_is_chosen_and_all_are_recorded() -> None:
    record = tuned(0.5, 0.3, 0.4)
    assert record["learning_rate"] == pytest.approx(0.01)
    assert record["validation_loss"] == pytest.approx(0.3)
    assert record["validation_score"] == pytest.approx(0.7)
    assert record["at_edge"] is False
    assert [one["loss"] for one in record["search"]] == pytest.approx([0.5, 0.3, 0.4])
    assert record["provenance"]["wall_seconds"] == 6.0


def test_a_choice_at_the_edge_says_so_and_a_training_that_went_astray_is_none() -> None:
    assert tuned(0.2, 0.3, 0.4)["at_edge"] is True
    astray = tuned(0.5, 0.4, math.nan)
    assert astray["learning_rate"] == pytest.approx(0.01)
