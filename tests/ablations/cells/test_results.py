"""A row's figures over seeds, its test against the reference, and what its record adds to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ablations.cells.experts import Experts
from ablations.cells.guidance import Guidance, Model
from ablations.cells.intervals import PairedTest, RowFigures
from ablations.cells.noise import GradientQuality, NoiseAccuracy
from ablations.cells.peer_costs import PeerRow
from ablations.cells.results import About, Row
from ablations.cells.samples import Samples
from ablations.cells.scores import Score
from ablations.cells.setup import Setup
from ablations.cells.synthesis import Synthesis, TrainingData
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ablations.settings.plugins import load_plugins
from ppap.diffusion.ddim import DDIM
from ppap.evaluation.features import Features
from ppap.evaluation.metrics import fid
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.routing import NoiseRanges
from ppap.experts.training import Training

STAMP = {"created": "2026", "commit": "c", "dirty": False, "hardware": {}}
NAME = "stripes-pixels-64"
ABOUT = About("any", "smoke", "ppap", "nearest")
Load = Callable[[Cell], Artifact]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("PPAP_PLUGINS", "")
    load_plugins(["ablations.examples.stripes"])
    return Setup.of(load_setting("stripes"))


def artifact(seed: int, count: int, accuracy: float, **meta: Any) -> Artifact:
    """A score of so many images, of which a share is right."""
    features = np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)
    right = (np.arange(count) < accuracy * count).astype(np.float64)
    facts = {"scales": [4.0], "count": count, "extractor": NAME, "accuracy": accuracy}
    quality = {"fid": 1.0, "kid": 0.1 * (seed + 1), "recall": None if seed else 0.5}
    return Artifact(facts | quality | meta, {"accuracy": right, "features": features})


def figures_of(setup: Setup, first: int, *shares: float) -> tuple[RowFigures, dict[str, Artifact]]:
    """A row of a seed for each share, and its scores by key; unequal numbers of images."""
    samples = [Samples(setup, DDIM(5), (), first + k, 10) for k in range(len(shares))]
    scores = tuple(map(Score, samples))
    known = {
        score.key: artifact(place, 10 + 10 * place, share)
        for place, (score, share) in enumerate(zip(scores, shares, strict=True))
    }
    return RowFigures(setup, scores, 3, ("kid", "recall")), known


def test_a_rows_figures_are_means_over_seeds_that_count_alike(setup: Setup) -> None:
    figures, known = figures_of(setup, 100, 0.5, 0.8)
    found = figures.compute(lambda cell: known[cell.key]).meta
    metrics = found["metrics"]
    assert (found["scale"], found["samples"], found["samples_per_fid"]) == (4.0, 30, 10)
    assert found["extractor"] == NAME
    assert metrics["accuracy"] == pytest.approx(0.65)
    assert metrics["accuracy_low"] < 0.65 < metrics["accuracy_high"]
    assert metrics["kid"] == pytest.approx(0.15)
    assert metrics["recall"] is None, "a mean over seeds of which one was not measured is none"
    assert metrics["fid_infinity"] is None, "30 images are too few for 64 dimensions"
    reference = setup.load().reference()
    plain = []
    for score in figures.scores:
        seen = torch.from_numpy(known[score.key].arrays["features"])
        plain.append(fid(Features(seen, seen, NAME), reference))
    assert metrics["fid"] == pytest.approx(np.mean(plain))
    assert found["per_seed"] == [
        {"accuracy": 0.5, "fid": 1.0, "kid": 0.1},
        {"accuracy": 0.8, "fid": 1.0, "kid": 0.2},
    ]


def test_a_paired_difference_is_ours_less_the_references(setup: Setup) -> None:
    ours, known = figures_of(setup, 100, 0.5, 0.8)
    theirs, others = figures_of(setup, 200, 0.4, 0.6)
    test = PairedTest(setup, ours, theirs)
    assert set(test.inputs()) == {*ours.scores, *theirs.scores}
    found = test.compute(lambda cell: (known | others)[cell.key]).meta
    assert set(found) == set(test.metrics()) == {"accuracy", "fid"}
    assert found["accuracy"]["value"] == pytest.approx(0.15)
    assert found["fid"] == pytest.approx({"value": 0, "low": 0, "high": 0, "p": 1})  # one picture


def banked(setup: Setup, *seconds: float) -> tuple[tuple[Experts, ...], dict[str, Artifact]]:
    """A bank for each training, and the shards that all of them were trained on."""
    shards = tuple(Synthesis(setup, DDIM(5), first, 10) for first in (0, 10))
    banks = tuple(
        Experts(
            setup, "nearest", NoiseRanges.equal(2), ppap_adapter(2), Training(2, 8, seed=seed),
            TrainingData(shards),
        )
        for seed in range(len(seconds))
    )  # fmt: skip
    times = zip((*banks, *shards), (*seconds, 5.0, 7.0), strict=True)
    return banks, {
        cell.key: Artifact(
            {
                "provenance": STAMP | {"wall_seconds": time},
                "cell": {"kind": type(cell).__name__},
                "trainable_share": 0.25,
                "losses": [1.0, 2.0],
            }
        )
        for cell, time in times
    }


def with_samples(figures: RowFigures, known: dict[str, Artifact]) -> dict[str, Artifact]:
    """And the row's figures, and samples that took a second each."""
    drawn = Artifact({"cell": {"kind": "Samples"}, "provenance": STAMP | {"wall_seconds": 1.0}})
    known |= {score.samples.key: drawn for score in figures.scores}
    return known | {figures.key: figures.compute(lambda cell: known[cell.key])}


def test_a_rows_record_has_means_over_trainings_and_each_seeds_figures(setup: Setup) -> None:
    figures, known = figures_of(setup, 100, 0.5, 0.8)
    banks, trained = banked(setup, 10.0, 30.0)
    noise = tuple(NoiseAccuracy(setup, Model("nearest", bank), 8, (20, 60)) for bank in banks)
    cosines = tuple(GradientQuality(setup, cell.model, cell.model, 8, (20,)) for cell in noise)
    known = with_samples(figures, known) | trained
    known |= {noise[0].key: Artifact({"accuracy": [0.9, 0.5]})}
    known |= {noise[1].key: Artifact({"accuracy": [0.7, 0.1]})}
    known |= {
        cell.key: Artifact({}, {"cosines": np.full(4, value)})
        for cell, value in zip(cosines, (0.2, 0.6), strict=True)
    }
    row = Row(setup, ABOUT, (4, 7), "ddim5", figures, banks, noise, cosines)
    record = row.compute(lambda cell: known[cell.key]).meta["record"]
    assert record["train_seconds"] == 20.0
    assert record["trainable_share"] == 0.25
    assert record["noisy_accuracy"] == pytest.approx(0.55)
    assert record["gradient_cosine"] == pytest.approx(0.4)
    assert [(one["seed"], one["accuracy"]) for one in record["per_seed"]] == [(4, 0.5), (7, 0.8)]
    assert (record["samples"], record["scale"], record["seeds"]) == (30, 4.0, [4, 7])
    assert record["provenance"]["wall_seconds"] == 42.0
    assert record["provenance"]["samples_per_fid"] == 10
    several, more = banked(setup, 10.0, 30.0, 5.0, 15.0)  # of two tasks, for each seed
    record = replace(row, banks=several).compute(lambda cell: (known | more)[cell.key])
    assert record.meta["record"]["train_seconds"] == 30.0
    unguided = replace(row, banks=(), noise=(), gradients=())
    record = unguided.compute(lambda cell: known[cell.key]).meta["record"]
    assert record["trainable_share"] == 0.0
    assert not {"train_seconds", "noisy_accuracy", "gradient_cosine"} & set(record)


def test_what_a_method_prepares_is_one_training_and_what_it_saw(setup: Setup) -> None:
    figures, known = figures_of(setup, 100, 0.5, 0.8)
    banks, trained = banked(setup, 10.0, 30.0)
    known = with_samples(figures, known) | trained
    row = PeerRow(setup, ABOUT, (0, 1), "ddim5", figures, banks)
    assert {shard for bank in banks for shard in bank.data.shards} < set(row.inputs())
    assert row.preparation_seconds(lambda cell: known[cell.key]) == 20.0 + 5.0 + 7.0
    assert replace(row, banks=()).preparation_seconds(lambda cell: known[cell.key]) == 0.0


def test_gradients_of_one_model_agree_and_noise_costs_it_its_accuracy(setup: Setup) -> None:
    model = Model("nearest")

    def load(cell: Cell) -> Artifact:
        raise AssertionError("nothing is read")

    alike = GradientQuality(setup, model, model, 6, (50, 950)).compute(load)
    assert alike.arrays["cosines"].shape == (6,), "one of each image, mean over noise levels"
    assert alike.meta["cosine"] == pytest.approx(1)
    found = NoiseAccuracy(setup, model, 16, (0, 999)).compute(load).meta["accuracy"]
    assert found[0] == 1.0 > found[1]


def test_guidance_that_was_selected_is_as_strong_as_the_selection_says(setup: Setup) -> None:
    score = Score(Samples(setup, DDIM(5), (), 0, 10))
    selected = Guidance(Model("nearest"), score)
    assert list(selected.inputs()) == [score]
    assert selected.selected_scale(lambda cell: Artifact({"scale": 8})) == 8.0
    assert replace(selected, scale=2.0).selected_scale(lambda cell: Artifact({})) == 2.0
