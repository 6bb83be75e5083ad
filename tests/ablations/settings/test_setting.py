"""Which sample has which target."""

from __future__ import annotations

from ablations.settings.catalogue import load_setting
from ablations.settings.setting import TargetOrder


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
