"""Ways to draw are compared under the same experts, from the same noise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ablations.cells.curves import Claim, Curve
from ablations.sweeps import HEADLINE, SWEEPS, speed_quality
from ablations.sweeps.refinements import CALIBRATED, HELD_BACK
from ablations.sweeps.speed_quality import MARGINS, STANDARD, WAYS
from tests.ablations.sweeps.test_claims import curves as curves_of_claims
from tests.ablations.sweeps.test_claims import lab, scores

HALVES = {name for name, way in WAYS.items() if way.path == "bf16"}


@pytest.fixture(autouse=True)
def _with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every device, whether it has it or not: nothing is computed here."""
    monkeypatch.setattr(speed_quality, "has_bfloat16", lambda _: True)


def test_experts_seeds_and_targets_are_the_same() -> None:
    found = [r for r in SWEEPS["speed-quality"].build(lab()) if isinstance(r, Curve)]
    assert len(found) == 2 * len(WAYS)
    for curve in found:
        way, theirs = (
            WAYS[curve.about.method],
            curves_of_claims(lab())[curve.about.predictor, "ppap"],
        )
        assert [bank.key for bank in curve.banks] == [bank.key for bank in theirs.banks]
        drawn = {(score.samples.first_seed, score.samples.count) for score in scores(curve)}
        assert drawn == {(s.samples.first_seed, s.samples.count) for s in scores(theirs)}
        assert {score.samples.sampler for score in scores(curve)} == {way.sampler}
        assert {score.samples.setup.path for score in scores(curve)} == {way.path or "plain"}
        assert curve.setup.path == way.path or way.path is None


def test_guidance_is_held_back_where_the_way_says_so() -> None:
    for curve in SWEEPS["speed-quality"].build(lab()):
        if isinstance(curve, Curve):
            guides = {part.model for s in scores(curve) for part in s.samples.guidance}
            refined = {getattr(model, "refinement", None) for model in guides}
            told = {"held back": HELD_BACK, "calibrated": CALIBRATED}
            (expected,) = [r for word, r in told.items() if word in curve.about.method] or [None]
            assert refined == {expected}


def test_only_classes_are_guided_towards_by_calibrated_logits() -> None:
    found = list(SWEEPS["speed-quality"].build(lab("scenes")))
    for task in ("depth", "segmentation"):
        own = [r for r in found if r.about.predictor == task]
        assert {r.about.method for r in own if isinstance(r, Curve)} == {
            name for name in WAYS if "calibrated" not in name
        }
        assert not any("calibrated" in r.about.method for r in own)
    assert any("calibrated" in r.about.method for r in found)


def test_without_instructions_for_it_nothing_is_drawn_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed_quality, "has_bfloat16", lambda _: False)
    found = list(SWEEPS["speed-quality"].build(lab()))
    assert {r.about.method for r in found if isinstance(r, Curve)} == set(WAYS) - HALVES
    # What is said of it stays open, and says that there is no curve of it.
    assert {r.ours for r in found if isinstance(r, Claim)} == set(WAYS) - {STANDARD}


def test_what_the_sweep_of_claims_has_drawn_is_not_drawn_again() -> None:
    (ours,) = (
        r
        for r in SWEEPS["speed-quality"].build(lab())
        if isinstance(r, Curve) and (r.about.predictor, r.about.method) == ("vit", "2M-8 to 80")
    )
    theirs = curves_of_claims(lab())["vit", "ppap"]
    assert [score.key for score in scores(ours)] == [score.key for score in scores(theirs)]


def test_every_way_is_compared_with_the_standard_one_and_bfloat16_with_float32() -> None:
    claims = [r for r in SWEEPS["speed-quality"].build(lab()) if isinstance(r, Claim)]
    quantities = {"score_at_matched_distance", "best_score"} | {q for q, _ in MARGINS.values()}
    for name in set(WAYS) - {STANDARD}:
        own = [c for c in claims if (c.about.predictor, c.ours) == ("vit", name)]
        assert {claim.quantity for claim in own} == quantities
        other = name.removesuffix(", in bfloat16") if name in HALVES else STANDARD
        assert {claim.theirs for claim in own} == {other}
        equal = name in HALVES or not ("held back" in name or "calibrated" in name)
        directions = {"greater", "less"} if not equal else {"equivalent"}
        assert {claim.expected for claim in own} == directions
    assert "speed-quality" not in HEADLINE


def test_better_is_less_distance_less_saturation_and_more_recall() -> None:
    contrast = speed_quality.contrasts()["2M-8 to 80, held back: recall"]
    task = lab().setting.tasks["class"]
    assert contrast.expected(task) == "greater"
    assert contrast.margin_in("depth_rmse") == contrast.margin == 0.03
    less = replace(contrast, quantity="distance_ratio_at_high_score")
    assert less.expected(task) == "less"
