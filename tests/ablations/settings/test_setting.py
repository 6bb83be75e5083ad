"""Which sample has which target, and which settings and figures can be recorded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from ablations.errors import UserError
from ablations.settings.catalogue import load_setting
from ablations.settings.setting import SelectionRule, TargetOrder
from ppap.evaluation.metrics import correct


def test_classes_are_asked_for_in_turn_whatever_the_seed() -> None:
    setting = load_setting("fashion")
    assert setting.order == TargetOrder()
    numbers = setting.order.numbers(12345, range(8, 12))
    assert setting.tasks["class"].targets(numbers).tolist() == [8, 9, 0, 1]


def test_two_samples_share_a_scene_that_no_other_seeds_have() -> None:
    order = load_setting("scenes").order
    assert order.numbers(50, range(5)) == [50, 50, 51, 51, 52]
    assert order.numbers(50, range(3, 5)) == [51, 52]
    assert order.samples_per_target == 2


def test_two_tasks_that_call_their_figures_alike_are_refused() -> None:
    setting = load_setting("fashion")
    ours = setting.tasks["class"]
    with pytest.raises(UserError, match="figure accuracy of 2 tasks, of which a record would keep"):
        replace(setting, tasks={"class": ours, "style": ours})
    other = replace(ours, metrics={"fits": correct}, selection=SelectionRule("fits", 0.02))
    assert replace(setting, tasks={"class": ours, "style": other}).metrics == ("accuracy", "fits")


@pytest.mark.parametrize("name", ["precision", "fid", "sfid", "fid_infinity", "seed", "scale"])
def test_a_figure_is_not_called_like_what_records_have_besides(name: str) -> None:
    setting = load_setting("fashion")
    more = replace(setting.tasks["class"], metrics={"accuracy": correct, name: correct})
    with pytest.raises(UserError, match=f"figure {name} of its samples and a task"):
        replace(setting, tasks={"class": more})


def test_a_setting_has_a_predictor_a_class_and_figures_to_select_by() -> None:
    setting = load_setting("fashion")
    task = setting.tasks["class"]
    for lacking in ({"tasks": {"kind": task}}, {"predictors": ()}):
        with pytest.raises(UserError, match='a task called "class"'):
            replace(setting, **lacking)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"task class .* selects by f1; choose from .*accuracy"):
        replace(setting, tasks={"class": replace(task, selection=SelectionRule("f1", 0.1))})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, float("nan"), 0.0], r"of 3 images has shape \(3,\) and is not finite 1 times"),
        (0.5, r"has shape \(\)"),
        ([[1.0], [0.0], [1.0]], r"has shape \(3, 1\)"),
        ([1.0, 0.0], r"has shape \(2,\)"),
    ],
)
def test_every_image_has_a_figure(found: Any, message: str) -> None:
    task = load_setting("fashion").tasks["class"]
    task = replace(task, metrics={"accuracy": lambda predicted, targets: torch.tensor(found)})
    with pytest.raises(UserError, match=message):
        task.figures("accuracy", torch.zeros(3, 10), torch.zeros(3, dtype=torch.int64))


def test_of_a_split_that_is_sorted_by_class_images_of_all_classes_are_held_out() -> None:
    task = load_setting("fashion").tasks["class"]
    images = torch.arange(200, dtype=torch.uint8).reshape(200, 1, 1, 1)
    labels = torch.arange(200) % 10

    def held_out(order: torch.Tensor, count: int) -> tuple[list[int], list[int]]:
        split = images[order], labels[order]
        some, targets = replace(task, labelled=lambda split_name: split).held_out(count)
        assert labels[some.flatten().long()].tolist() == targets.tolist()
        return some.flatten().tolist(), targets.tolist()

    turns, by_class = torch.arange(200), labels.argsort(stable=True)
    assert held_out(turns, 30)[0] == list(range(30))
    assert Counter(held_out(by_class, 30)[1]) == dict.fromkeys(range(10), 3)
    assert held_out(by_class, 300)[0] == by_class.tolist()
