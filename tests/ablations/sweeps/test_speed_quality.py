"""Samplers are compared under the same experts, from the same noise."""

from __future__ import annotations

from ablations.cells.curves import Claim, Curve
from ablations.sweeps import HEADLINE, SWEEPS
from ablations.sweeps.speed_quality import SAMPLERS, STANDARD
from tests.ablations.sweeps.test_claims import curves as curves_of_claims
from tests.ablations.sweeps.test_claims import lab, scores


def test_only_the_sampler_differs() -> None:
    results = list(SWEEPS["speed-quality"].build(lab()))
    found = [r for r in results if isinstance(r, Curve)]
    assert len(found) == 2 * len(SAMPLERS)
    assert len({curve.sampler for curve in found}) == len(SAMPLERS)
    for curve in found:
        theirs = curves_of_claims(lab())[curve.about.predictor, "ppap"]
        assert [bank.key for bank in curve.banks] == [bank.key for bank in theirs.banks]
        drawn = {(score.samples.first_seed, score.samples.count) for score in scores(curve)}
        assert drawn == {(s.samples.first_seed, s.samples.count) for s in scores(theirs)}
        samplers = {score.samples.sampler for score in scores(curve)}
        assert samplers == {SAMPLERS[curve.about.method]}


def test_what_the_sweep_of_claims_has_drawn_is_not_drawn_again() -> None:
    (ours,) = (
        r
        for r in SWEEPS["speed-quality"].build(lab())
        if isinstance(r, Curve) and (r.about.predictor, r.about.method) == ("vit", "2M-8 to 80")
    )
    theirs = curves_of_claims(lab())["vit", "ppap"]
    assert [score.key for score in scores(ours)] == [score.key for score in scores(theirs)]


def test_every_other_sampler_is_claimed_to_be_as_good_as_the_standard_one() -> None:
    claims = [r for r in SWEEPS["speed-quality"].build(lab()) if isinstance(r, Claim)]
    pairs = {(claim.ours, claim.theirs, claim.quantity) for claim in claims}
    others = set(SAMPLERS) - {STANDARD}
    assert pairs == {
        (name, STANDARD, quantity)
        for name in others
        for quantity in ("score_at_matched_distance", "best_score")
    }
    assert {claim.expected for claim in claims} == {"equivalent"}
    assert "speed-quality" not in HEADLINE
