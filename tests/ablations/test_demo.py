"""The demonstration, small: it trains, guides the same seeds three ways and draws a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ablations import demo
from ablations.demo import Demo, draw, main

SMALL = Demo(synthetic=32, steps=10, batch=16, images=20)


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[torch.Tensor, float]]:
    return draw(SMALL)


def test_every_way_starts_from_the_same_seeds_and_ends_elsewhere(
    found: dict[str, tuple[torch.Tensor, float]],
) -> None:
    assert list(found) == ["unguided", "naive", "PPAP"]
    images = [images for images, _ in found.values()]
    assert all(part.shape == (20, 1, 32, 32) for part in images)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_accuracy_is_the_share_of_images_that_the_judge_recognises(
    found: dict[str, tuple[torch.Tensor, float]],
) -> None:
    for _, accuracy in found.values():
        assert 0 <= accuracy <= 1
        assert accuracy * 20 == pytest.approx(round(accuracy * 20))


def test_the_command_writes_the_picture_where_it_is_told(
    found: dict[str, tuple[torch.Tensor, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "draw", lambda chosen, progress: found)
    path = tmp_path / "new" / "demo.png"
    assert main(["--output", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.width == 1200
        assert picture.height == pytest.approx(414, abs=1)
    assert f"wrote {path}" in capsys.readouterr().out
