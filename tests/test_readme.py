"""README's first example runs as it stands, on small networks and few images."""

from __future__ import annotations

import re
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ppap
from ablations.cells.plugins import load_guide
from tests.ppap.networks import SHAPE, tiny_denoiser, tiny_predictor

README = Path(__file__).parents[1] / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def first_example() -> str:
    return examples()[0]


def test_the_first_example_is_six_lines() -> None:
    lines = [line for line in first_example().splitlines() if line]
    assert len(lines) == 6
    assert lines[0] == "import ppap"


def test_the_first_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def load(made: Any, *names: str) -> Any:
        asked.append(names)
        return made

    few = ppap.Training(steps=10, batch=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppap, "load_denoiser", partial(load, tiny_denoiser()), raising=False)
    monkeypatch.setattr(ppap, "load_predictor", partial(load, tiny_predictor()), raising=False)
    monkeypatch.setattr(ppap, "transfer", partial(ppap.transfer, training=few), raising=False)
    program = tmp_path / "example.py"
    program.write_text(first_example().replace("500_000", "12").replace("207", "3"))
    seen = runpy.run_path(str(program))
    assert [names[0] for names in asked] == ["adm-imagenet256", "timm/resnet50.tv2_in1k"]
    images = seen["images"]
    assert images.shape == (64, *SHAPE)
    assert images.isfinite().all()
    again = ppap.ExpertBank.load(tmp_path / "experts", tiny_predictor())
    guide = again.guide(3, scale=7.5)
    assert torch.equal(ppap.sample(seen["denoiser"], seeds=64, guide=guide), images)


def test_a_guide_of_ones_own_is_less_than_ten_lines_and_a_plugin_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = (example for example in examples() if "class MyGuide" in example)
    assert len([line for line in text.splitlines() if line]) < 10
    (tmp_path / "my_guide.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    likelihood = ppap.ImageLikelihood(tiny_predictor(), ppap.ClassTask(), 3)
    guide = load_guide("my_guide")(likelihood, 2.0)
    images = ppap.sample(tiny_denoiser(), seeds=2, guide=guide, sampler=ppap.DDIM(4))
    assert not torch.equal(images, ppap.sample(tiny_denoiser(), seeds=2, sampler=ppap.DDIM(4)))


def test_the_example_of_the_best_preset_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (README.parent / "ppap/guidance/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = (code for code in blocks if "best_preset" in code)
    small = found.replace("128", "6").replace("1000", "5").replace("207", "3").replace("64", "4")
    program, predictor = tmp_path / "example.py", tiny_predictor()
    program.write_text(small)
    quick = partial(ppap.best_preset, scales=(1.0, 4.0), fast=False)
    monkeypatch.setattr(ppap, "best_preset", quick, raising=False)
    given = {"torch": torch, "ppap": ppap, "denoiser": tiny_denoiser(), "resnet": predictor}
    seen = runpy.run_path(str(program), given | {"bank": ppap.ExpertBank(predictor)})
    assert seen["images"].shape == (4, *SHAPE)
    assert seen["best"].name in ("fast", "held-back", "calibrated")
    assert len(seen["best"].tried) == 6
