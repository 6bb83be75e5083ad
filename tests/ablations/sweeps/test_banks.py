"""What a recipe says is what is trained: no field of it is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from ablations.cells.experts import BalancedRanges, Experts
from ablations.cells.synthesis import Synthesis
from ablations.machine.store import Artifact
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps.banks import long_trained_bank, synthetic_data, trained_bank
from ablations.sweeps.recipes import FULL, PPAP, Recipe
from ppap.experts.routing import NoiseRanges

SETTING, BUDGET = load_setting("fashion"), BUDGETS["default"]
SCHEDULE = SETTING.denoiser().schedule
OF_GUIDING = {"guide", "refinement"}


def bank(recipe: Recipe, seed: int = 3) -> Experts:
    return trained_bank(SETTING, BUDGET, recipe, "resnet", seed)


FIELDS: dict[str, tuple[Any, Callable[[Experts], Any], Any]] = {
    "experts": (3, lambda b: b.ranges, NoiseRanges.equal(3, len(SCHEDULE))),
    "supervision": ("labelled", lambda b: (b.data.supervision, b.data.shards), ("labelled", ())),
    "tuning": (FULL, lambda b: (b.adapter, b.training.learning_rate), (FULL.adapter, 3e-3)),
    "length": (2.0, lambda b: b.training.steps, 2 * BUDGET.steps),
    "images": (0.5, lambda b: b.data, synthetic_data(SETTING, BUDGET, 0.5)),
    "ranges": ("log-SNR", lambda b: b.ranges, NoiseRanges.equal_log_snr(5, SCHEDULE)),
    "inclusive": (True, lambda b: b.ranges.inclusive, True),  # type: ignore[union-attr]
    "start": ("base", lambda b: b.training.start, "base"),
    "order": ("descending", lambda b: b.training.order, "descending"),
    "keep_optimiser": (True, lambda b: b.training.keep_optimiser, True),
    "temperature": (1.0, lambda b: b.temperature, 1.0),
    "normalised": (False, lambda b: b.normalised, False),
}
"""A value that is not the default, where it is found, and what is found there."""


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_a_recipe_reaches_the_bank_and_makes_it_another(name: str) -> None:
    value, look, expected = FIELDS[name]
    plain, changed = bank(PPAP), bank(replace(PPAP, **{name: value}))
    assert look(changed) == expected != look(plain)
    assert changed.key != plain.key


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": np.int64(3)},
        {"length": np.float32(0.5), "images": np.float64(0.5)},
        {"temperature": np.float32(0.5), "normalised": np.bool_(False)},
    ],
)
def test_numpys_numbers_make_the_recipe_that_others_do(changes: dict[str, Any]) -> None:
    made = replace(PPAP, **changes)
    plain = replace(PPAP, **{name: value.item() for name, value in changes.items()})
    assert made == plain
    assert not any(isinstance(value, np.generic) for value in vars(made).values())
    assert bank(made).key == bank(plain).key


def test_every_field_is_one_of_training_or_of_guiding() -> None:
    assert {field.name for field in fields(Recipe)} == {*FIELDS} | OF_GUIDING


def test_seed_and_task_are_those_that_are_asked_for() -> None:
    scenes = load_setting("scenes")
    depth = trained_bank(scenes, BUDGET, PPAP, "depth", 7, "depth")
    assert (depth.training.seed, depth.task, depth.setup.name) == (7, "depth", "scenes")
    assert bank(PPAP, 3).key != bank(PPAP, 4).key


def test_labels_have_no_temperature() -> None:
    labelled = replace(PPAP, supervision="labelled")
    assert bank(labelled).key == bank(replace(labelled, temperature=1.0)).key


def test_ranges_of_equal_loss_are_measured_once_for_all_seeds_on_one_expert() -> None:
    found = [bank(replace(PPAP, ranges="transfer loss"), seed).ranges for seed in (3, 4)]
    assert found[0] == found[1]
    assert isinstance(found[0], BalancedRanges)
    assert (found[0].count, found[0].experts) == (5, bank(Recipe(experts=1), 0))


def test_the_standard_of_gradients_is_trained_longer_by_a_seed_that_no_row_has() -> None:
    found = long_trained_bank(SETTING, BUDGET, "resnet")
    assert (found.count, found.data.supervision) == (5, "labelled")
    assert found.training.steps == 16 * BUDGET.steps
    assert found.training.seed >= 1000 > BUDGET.seeds


@pytest.mark.parametrize(("amount", "count"), [(1.0, 1000), (0.33, 330), (1.7, 1700)])
def test_synthetic_images_are_as_many_as_asked_for_and_no_seed_is_drawn_twice(
    amount: float, count: int
) -> None:
    def drawn(shard: Any) -> Artifact:
        assert isinstance(shard, Synthesis)
        seeds = np.arange(shard.first_seed, shard.first_seed + shard.count)
        return Artifact({}, {"images": seeds[:, None, None, None]})

    data = synthetic_data(SETTING, BUDGET, amount)
    images, targets = data.load(SETTING, "class", drawn)
    assert targets is None
    assert images[:, 0, 0, 0].tolist() == list(range(10**9, 10**9 + count))  # type: ignore[union-attr]
