"""Progress: a bar, silence or a function, all told alike."""

from __future__ import annotations

import pytest

from ppap.compute.progress import reporting


def test_a_function_hears_how_far_the_work_is() -> None:
    heard: list[tuple[int, int, dict[str, float]]] = []

    def progress(done: int, total: int, /, **facts: float) -> None:
        heard.append((done, total, facts))

    with reporting(progress, 5, "work", "steps", done=1) as tell:
        tell(2, loss=0.5)
        tell(2)
    assert heard == [(3, 5, {"loss": 0.5}), (5, 5, {})]


def test_a_bar_names_the_work_its_unit_and_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(True, 4, "sampling", "images") as tell:
        tell(4, loss=0.25)
    shown = capsys.readouterr().err
    assert "sampling: 100%" in shown
    assert "4/4" in shown
    assert "images" in shown
    assert "loss=0.25" in shown


def test_nothing_is_shown_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(False, 4, "sampling", "images") as tell:
        tell(4)
    found = capsys.readouterr()
    assert found.err == found.out == ""
