"""Trainings of denoisers: resumable to the bit, with draws and rates that are stated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablations.zoo.denoising import DenoiserRecipe, DenoiserTraining, noise_weights
from ppap.denoisers.preconditioned import Preconditioned
from ppap.diffusion.schedule import linear_schedule

RECIPE = DenoiserRecipe(steps=12, cooldown=4, batch=8, warm_up=2, evaluate_every=6)


class Blur(nn.Module):
    """The least that has hidden layers, for Muon, and others, for Adam."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 32, 3, padding=1)
        self.hidden = nn.Conv2d(32, 32, 1)
        self.exit = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        del timesteps
        drawn: Tensor = self.exit(self.hidden(self.entry(x_t).relu()).relu())
        return drawn


def make() -> Preconditioned:
    return Preconditioned(Blur(), linear_schedule(), 0.5)


def training(folder: Path, recipe: DenoiserRecipe = RECIPE) -> DenoiserTraining:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(256, (40, 1, 1, 1), generator=generator, dtype=torch.uint8)
    return DenoiserTraining(make, grey.expand(-1, -1, 8, 8), recipe, folder, "fp32")


def nothing(_network: nn.Module) -> dict[str, Any]:
    return {"fid": 1.0}


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole").run(nothing).state_dict()

    def interrupt(_network: nn.Module) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "parts").run(interrupt)
    resumed = training(tmp_path / "parts")
    assert resumed.step == 6
    for key, value in resumed.run(nothing).state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_a_longer_training_continues_from_before_the_cooldown(tmp_path: Path) -> None:
    training(tmp_path / "short").run(nothing)
    (tmp_path / "short" / "plateau.pt").replace(tmp_path / "short" / "state.pt")
    longer = replace(RECIPE, steps=20)
    continued = training(tmp_path / "short", longer)
    assert continued.step == 8
    whole = training(tmp_path / "long", longer).run(nothing).state_dict()
    for key, value in continued.run(nothing).state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_the_curve_has_a_point_at_every_evaluation(tmp_path: Path) -> None:
    training(tmp_path / "run").run(nothing)
    lines = (tmp_path / "run" / "curve.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    assert [(point["step"], point["images"]) for point in points] == [(6, 48), (12, 96)]
    assert all(point["fid"] == 1.0 for point in points)
    assert points[0]["learning_rate"] == 1.0
    assert points[1]["learning_rate"] == 0.25


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=150, evaluate_every=75)
    training(tmp_path / "run", recipe).run(nothing)
    lines = (tmp_path / "run" / "curve.jsonl").read_text().splitlines()
    first, last = (json.loads(line)["loss"] for line in lines)
    assert last < 0.95 * first


def test_the_noise_weights_are_a_distribution_with_the_stated_centre() -> None:
    schedule = linear_schedule()
    weights = noise_weights(schedule, 0.5, (-1.0, 0.3), uniform=0.0).numpy()
    noise = -0.5 * schedule.log_snr
    assert weights.sum() == pytest.approx(1)
    mean = (weights * noise).sum()
    assert mean == pytest.approx(torch.tensor(0.5).log().item() - 1.0, abs=0.01)
    assert (weights * (noise - mean) ** 2).sum() ** 0.5 == pytest.approx(0.3, abs=0.01)


def test_uniform_weights_are_all_alike() -> None:
    weights = noise_weights(linear_schedule(), 0.5, (-1.0, 0.3), uniform=1.0)
    torch.testing.assert_close(weights, torch.full((1000,), 1e-3, dtype=torch.float64))


def test_a_training_by_the_clock_ends_in_time_with_its_rate_cooled_down(tmp_path: Path) -> None:
    recipe = replace(RECIPE, seconds=2.0, evaluate_every=10**6)
    run = training(tmp_path / "run", recipe)
    run.run(nothing)
    (point,) = (tmp_path / "run" / "curve.jsonl").read_text().splitlines()
    assert run.step > 0
    assert json.loads(point)["learning_rate"] < 1
    assert recipe.rate_at(1000, 0.0) == 1
    assert recipe.rate_at(1000, 5 / 6) == pytest.approx(0.5)


def test_a_training_by_the_clock_goes_on_where_it_was(tmp_path: Path) -> None:
    """What a first part spent counts; the state before the cool-down is that of the first part."""
    folder, clock = tmp_path / "run", iter(range(10**6))
    recipe = replace(RECIPE, steps=4, cooldown=1, seconds=40.0, evaluate_every=10**6)

    def ticking(recipe: DenoiserRecipe) -> DenoiserTraining:
        run = training(folder, recipe)
        run._clock = lambda: float(next(clock))
        return run

    ticking(replace(recipe, seconds=20.0, cooldown=0)).run(nothing)
    first, second = (json.loads((folder / "curve.jsonl").read_text()), ticking(recipe))
    assert (first["step"], first["seconds"], first["learning_rate"]) == (20, 20, 1)
    second.run(nothing)
    point = json.loads((folder / "curve.jsonl").read_text().splitlines()[-1])
    assert (point["step"], point["seconds"]) == (40, 40)
    assert torch.load(folder / "plateau.pt", weights_only=True)["step"] == 30


class Labelled(Blur):
    """Remembers the labels that it was shown."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x_t: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        self.seen.append(y)
        return super().forward(x_t, timesteps)


def test_some_images_of_a_conditional_training_hide_their_label(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    labels = torch.arange(40) % 3
    DenoiserTraining(
        lambda: Preconditioned(Labelled(seen), linear_schedule(), 0.5),
        torch.zeros(40, 1, 8, 8, dtype=torch.uint8),
        replace(RECIPE, steps=60, evaluate_every=100, batch=20),
        tmp_path,
        "fp32",
        labels=labels,
    ).run(nothing)
    shown = torch.cat(seen).bincount()
    assert len(shown) == 4
    assert 0.1 < float(shown[3] / shown.sum()) < 0.2
    assert bool((shown[:3] > 0.2 * shown.sum()).all())
