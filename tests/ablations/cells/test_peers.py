"""Samples by any method, the search for its options, what it costs and what its guide believes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ablations.cells.guidance import Guidance, Model
from ablations.cells.peer_costs import Belief, PeerCost
from ablations.cells.peers import Peer, PeerSamples, Search, Trial, networks_of
from ablations.cells.scores import Score
from ablations.cells.setup import Setup
from ablations.machine.cell import Cell
from ablations.machine.store import Artifact
from ablations.settings.catalogue import load_setting
from ablations.settings.setting import SelectionRule
from ppap.diffusion.ddim import DDIM
from ppap.guidance.likelihoods import ImageLikelihood, NoisyLikelihood, SumOfLikelihoods
from ppap.guidance.methods.elucd import CalibratedLogits
from ppap.guidance.methods.tfg import TFG
from ppap.predictors.predictor import Predictor

STEPS = 4
TRIAL = Trial(2.0, 1.0, (("iterations", 2), ("recurrence", 2), ("sigma", 0.0)))


def peer_samples(method: str, trial: Any = TRIAL, looks_at: Any = "x_0") -> PeerSamples:
    setup = Setup.of(load_setting("fashion"))
    guidance = (Guidance(Model("resnet"), 1.0),)
    return PeerSamples(setup, DDIM(STEPS), guidance, 7, 2, Peer(method, looks_at), trial)


def loading(**known: Any) -> Callable[[Cell], Artifact]:
    def load(cell: Cell) -> Artifact:
        found: Artifact = known[type(cell).__name__]
        return found

    return load


def test_a_trial_becomes_the_method_its_options_and_eta() -> None:
    samples = peer_samples("tfg")
    _, guide, sampler, likelihood = samples.prepared(loading(), samples.seeds)
    assert isinstance(guide, TFG)
    assert (guide.scale, guide.iterations, guide.recurrence, guide.sigma) == (2.0, 2, 2, 0.0)
    assert sampler == DDIM(STEPS, eta=1.0)
    assert isinstance(likelihood, ImageLikelihood)
    twice = replace(samples, strength=3.0).guide(loading(), samples.seeds)
    assert isinstance(twice, TFG)
    assert twice.scale == 6.0


def test_a_clean_predictor_looks_at_x_t_or_at_the_predicted_image_calibrated_on_request() -> None:
    naive = peer_samples("adm-g", Trial(2.0, 0.0), "x_t").likelihood(loading(), range(2), {})
    assert isinstance(naive, NoisyLikelihood)
    options = {"marginal": 0.5, "softplus": 3.0, "gamma": 0.3}
    calibrated = peer_samples("elucd").likelihood(loading(), range(2), options)
    assert isinstance(calibrated, ImageLikelihood)
    assert calibrated.task == CalibratedLogits(1.0, 0.5)
    assert options == {"gamma": 0.3}
    for likelihood in (naive, calibrated):
        assert [type(network).__name__ for network in networks_of(likelihood)] == ["ResNet"]
    assert isinstance(calibrated.predictor, Predictor)
    assert "Softplus" in repr(calibrated.predictor)


def test_targets_of_several_tasks_are_weighed_by_their_scales() -> None:
    setting = load_setting("scenes")
    parts = tuple(
        Guidance(Model(task.predictor, task=name), scale)
        for scale, (name, task) in zip((1.0, 20.0, 3.0), setting.tasks.items(), strict=True)
    )
    given = Setup.of(setting), DDIM(STEPS), parts, 7, 2, Peer("dps", "x_0"), TRIAL
    found = PeerSamples(*given).likelihood(loading(), range(7, 9), {})
    assert isinstance(found, SumOfLikelihoods)
    assert [part.weight for part in found.parts] == [1.0, 20.0, 3.0]  # type: ignore[attr-defined]
    for part, name in zip(found.parts, setting.tasks, strict=True):
        expected = setting.tasks[name].targets(PeerSamples(*given).target_numbers(range(7, 9)))
        torch.testing.assert_close(part.targets, expected)  # type: ignore[attr-defined]


def test_every_evaluation_is_counted() -> None:
    cost = PeerCost(peer_samples("tfg"), 3, DDIM(STEPS)).compute(loading()).meta["metrics"]
    steps = 2 * STEPS  # each made twice
    assert cost["denoiser_forward"] == cost["denoiser_backward"] == steps
    assert cost["predictor_forward"] == cost["predictor_backward"] == 3 * steps  # and twice ahead


def test_a_guided_image_takes_so_many_times_as_long_as_an_unguided_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    def drawn(*given: object, **options: object) -> None:
        guide = given[2]
        clock[0] += 6.0 if guide else 4.0

    monkeypatch.setattr("ablations.cells.speed.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("ablations.cells.peer_costs.sample", drawn)
    cost = PeerCost(peer_samples("tfg"), 3, DDIM(STEPS)).compute(loading()).meta["metrics"]
    assert cost["seconds_per_image"] == pytest.approx(2.0)
    assert cost["relative_seconds"] == pytest.approx(1.5)


def test_belief_is_the_guides_own_figure_and_the_gap_what_the_judge_does_not_see() -> None:
    samples = peer_samples("mpgd", Trial(5.0, 0.0))
    drawn = samples.compute(loading())
    assert drawn.meta["scales"] == [5.0]
    assert drawn.arrays["images"].shape == (2, 1, 32, 32)
    score = Artifact({"accuracy": 0.25})
    found = Belief(Score(samples)).compute(loading(PeerSamples=drawn, Score=score)).meta
    assert found["belief"] in (0.0, 0.5, 1.0)
    assert found["gap"] == found["belief"] - 0.25


def test_of_an_error_the_gap_is_by_how_much_less_of_it_the_guide_sees() -> None:
    guidance = (Guidance(Model("depth", task="depth"), 1.0),)
    setup, trial = Setup.of(load_setting("scenes")), Trial(5.0, 0.0)
    samples = PeerSamples(setup, DDIM(STEPS), guidance, 7, 2, Peer("mpgd", "x_0"), trial)
    pixels = np.random.default_rng(0).integers(256, size=(2, 3, 32, 32)).astype(np.uint8)
    known = {
        "PeerSamples": Artifact({}, {"images": pixels}),
        "Score": Artifact({"depth_rmse": 1.0}),
    }
    found = Belief(Score(samples)).compute(loading(**known)).meta
    assert 0 < found["belief"] != 1.0
    assert found["gap"] == pytest.approx(1.0 - found["belief"])


def test_a_search_chooses_by_the_rule_of_one_task_or_by_places_among_several() -> None:
    better = SelectionRule("accuracy", 0.02)
    lower = SelectionRule("depth_rmse", 0.1, higher_is_better=False)
    figures = [
        {"accuracy": 0.90, "depth_rmse": 0.3, "fid": 2.0},
        {"accuracy": 0.91, "depth_rmse": 0.1, "fid": 3.0},
        {"accuracy": 0.50, "depth_rmse": 0.2, "fid": 1.0},
    ]
    trials = tuple(Trial(float(n), 0.0) for n in range(3))
    assert Search((better,), trials, ()).best(figures) == 0
    assert Search((better, lower), trials, ()).best(figures) == 1
    search = Search((better,), trials[:1], (Score(peer_samples("dps")),))
    found = search.compute(loading(Score=Artifact(figures[0]))).meta
    assert found["history"] == [
        {"scale": 0.0, "eta": 0.0, "options": (), "accuracy": 0.90, "fid": 2.0}
    ]
    chosen = peer_samples("dps", search).chosen(loading(Search=Artifact({"trial": {
        "scale": 3.0, "eta": 1.0, "options": [["samples", 4]]}})))  # fmt: skip
    assert chosen == Trial(3.0, 1.0, (("samples", 4),))
