"""Arms of a claim pair up unit by unit, and differ by what the claim says alone."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from ablations.cells.curve_points import CurveScore, ExtendedSamples, SamplesAtScore
from ablations.cells.curves import Claim, Curve
from ablations.cells.pictures import Grid, Panel
from ablations.cells.synthesis import ShuffledLabels, Synthesis, TrainingData
from ablations.machine.cell import describe
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import HEADLINE, SWEEPS, Lab
from ablations.sweeps.claims import ARMS, CLAIMS
from ablations.sweeps.recipes import METHODS


def lab(name: str = "fashion", budget: str = "full", **options: object) -> Lab:
    setting = load_setting(name)
    return Lab(setting, BUDGETS[budget], budget, setting.predictors, **options)  # type: ignore[arg-type]


def curves(made: Lab) -> dict[tuple[str, str], Curve]:
    found = [r for r in SWEEPS["claims"].build(made) if isinstance(r, Curve)]
    return {(curve.about.predictor, curve.about.method): curve for curve in found}


def scores(curve: Curve) -> list[CurveScore]:
    return [score for row in curve.points for score in row]


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("fashion", ["resnet", "vit"]), ("scenes", ["class", "depth", "segmentation"])],
)
def test_every_predictor_has_every_arm_and_every_claim(setting: str, shown: list[str]) -> None:
    results = list(SWEEPS["claims"].build(lab(setting)))
    arms = defaultdict(list)
    for curve in (r for r in results if isinstance(r, Curve)):
        arms[curve.about.predictor].append(curve.about.method)
    assert dict(arms) == {name: list(ARMS) for name in shown}
    claims = [r for r in results if isinstance(r, Claim)]
    assert len(claims) == len(shown) * len(CLAIMS)
    for claim in claims:
        assert {claim.ours, claim.theirs} <= set(arms[claim.about.predictor])
        assert claim.ours != claim.theirs
        assert claim.statement.endswith(".")
    assert "claims" not in HEADLINE


def test_unit_by_unit_all_arms_draw_from_the_same_seeds_that_no_other_unit_has() -> None:
    seeds = defaultdict(set)
    for curve in curves(lab()).values():
        for row in curve.points:
            for unit, score in zip(curve.units, row, strict=True):
                seeds[unit].add((score.samples.first_seed, score.samples.count))
    assert sorted(seeds) == list(range(8))
    assert all(len(found) == 1 for found in seeds.values())
    starts = sorted(start for found in seeds.values() for start, _ in found)
    assert all(b - a >= 300 for a, b in pairwise(starts))
    assert starts[-1] + 300 < 2**32


@pytest.mark.parametrize(("setting", "kind"), [("fashion", Grid), ("scenes", Panel)])
def test_every_arm_is_shown_by_the_same_seeds_and_at_about_the_same_score(
    setting: str, kind: type[Grid | Panel]
) -> None:
    built = list(SWEEPS["claims"].build(lab(setting)))
    shown = [result for result in built if isinstance(result, kind)]
    arms = [result.about for result in built if isinstance(result, Curve)]
    assert [picture.about for picture in shown] == arms
    assert len({(p.samples.first_seed, p.samples.count) for p in shown}) == 1
    points = [result.points for result in built if isinstance(result, Curve)]
    for picture, own in zip(shown, points, strict=True):
        samples = picture.samples
        assert isinstance(samples, SamplesAtScore)
        assert samples.points == own
        for part in samples.guidance:
            assert samples.score == load_setting(setting).tasks[part.model.task].shown_at
        assert (picture.about.method == "unguided") == (not picture.samples.guidance)


def test_arms_are_trained_equally_long_each_unit_by_its_own_seed() -> None:
    for (_, name), curve in curves(lab()).items():
        trained = name not in ("unguided", "naive")
        assert [bank.training.seed for bank in curve.banks] == list(range(8)) * trained
        assert {bank.training.steps for bank in curve.banks} == {2000} - {2000 * (not trained)}


def test_arms_that_other_sweeps_have_are_trained_once() -> None:
    rows = SWEEPS["methods"].build(lab())
    trained = {bank.key for row in rows for bank in getattr(row, "banks", ())}
    for name in ("single", "multi-experts", "ppap"):
        assert name in METHODS
        assert {bank.key for bank in curves(lab())["resnet", name].banks[:3]} <= trained


def test_scales_are_doubled_beyond_the_budgets_six_times_and_for_dense_tasks_relative() -> None:
    made = curves(lab("scenes"))
    for task, relative in (("class", 1.0), ("depth", 20.0)):
        curve = made[task, "ppap"]
        scales = [row[0].samples.guidance[0].scale for row in curve.points]
        assert scales == [relative * 2.0**k for k in range(1, 12)]
        extended = [isinstance(row[0].samples, ExtendedSamples) for row in curve.points]
        assert extended == [False] * 5 + [True] * 6
        assert {score.task for score in scores(curve)} == {task}
    assert len(made["depth", "unguided"].points) == 1
    given = curves(lab(scales=(8.0, 1.0)))["resnet", "naive"]
    assert [row[0].samples.guidance[0].scale for row in given.points][:3] == [1.0, 8.0, 16.0]


def test_a_claim_of_being_better_is_one_of_less_where_the_score_is_an_error() -> None:
    found = {
        (claim.about.predictor, claim.about.method): claim.expected
        for claim in SWEEPS["claims"].build(lab("scenes"))
        if isinstance(claim, Claim)
    }
    assert found["class", "experts beat one network"] == "greater"
    assert found["depth", "experts beat one network"] == "less"
    assert found["class", "one network collapses"] == "less"
    assert found["segmentation", "one network collapses"] == "greater"
    assert found["depth", "no labels are needed"] == "equivalent"


def test_margins_of_errors_are_as_large_a_share_of_what_guidance_brings() -> None:
    found = {
        claim.about.predictor: claim.margin
        for claim in SWEEPS["claims"].build(lab("scenes"))
        if isinstance(claim, Claim) and claim.about.method == "no labels are needed"
    }
    assert found == {"class": 0.03, "depth": 0.003, "segmentation": 0.006}


def test_the_control_is_trained_on_the_same_images_with_labels_of_others() -> None:
    made = curves(lab())
    control, single = made["resnet", "single, shuffled labels"], made["resnet", "single"]
    assert control.about.supervision == "shuffled"
    data = [bank.data for bank in control.banks]
    assert data == [ShuffledLabels(seed=unit) for unit in range(8)]
    assert {bank.data for bank in single.banks} == {TrainingData()}
    assert control.banks[3].label() == "1 shuffled resnet expert, seed 3"
    assert single.banks[3].label() == "1 labelled resnet expert, seed 3"
    assert describe(TrainingData()) == {"kind": "TrainingData", "shards": [], "limit": None}
    setting = load_setting("fashion")
    images, labels = setting.labelled("train")
    shuffled = data[1].load(setting, "class", lambda cell: pytest.fail("it needs no cell"))
    assert shuffled[0] is images
    assert shuffled[1] is not None
    assert sorted(set(shuffled[1][:500].tolist())) == list(range(10))
    assert 0.05 < (shuffled[1] == labels).double().mean() < 0.15
    assert shuffled[1].bincount().tolist() == labels.bincount().tolist()
    assert not any(isinstance(cell, Synthesis) for bank in control.banks for cell in bank.inputs())
