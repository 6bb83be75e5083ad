"""Every method has as many trials as any other, drawn from its own ranges, anywhere the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from ablations.cells.curves import Claim, Curve
from ablations.cells.peer_costs import PeerRow
from ablations.cells.peers import ExtendedPeerSamples
from ablations.cells.results import Row
from ablations.errors import UserError
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import SWEEPS, Lab
from ablations.sweeps.peers import ROWS, SPACES, STRENGTHS, trials
from ppap.diffusion.ddim import DDIM
from ppap.guidance import METHODS


def lab(**options: object) -> Lab:
    made = Lab(load_setting("fashion"), BUDGETS["default"], "default", ("resnet",))
    return replace(made, **options)  # type: ignore[arg-type]


def test_every_method_of_the_library_that_needs_no_other_denoiser_is_a_row() -> None:
    assert set(SPACES) == set(METHODS) - {"classifier-free", "autoguidance"}
    assert {recipe.method for recipe in ROWS.values()} == set(SPACES)


@pytest.mark.parametrize("method", SPACES)
def test_trials_are_spread_over_the_scales_and_drawn_from_the_options(method: str) -> None:
    found = trials(method, 12)
    assert found == trials(method, 12)
    low, high = SPACES[method]["scale"]
    assert len({trial.scale for trial in found}) == 12
    assert low <= min(t.scale for t in found) < low * (high / low) ** (1 / 12)
    assert low * (high / low) ** (11 / 12) < max(t.scale for t in found) <= high
    for trial in found:
        for name, value in trial.options:
            assert value in SPACES[method][name]
        assert trial.eta in ((1.0,) if method == "fk-steering" else (0.0, 1.0))


def test_scales_that_are_given_are_tried_in_turn() -> None:
    results = SWEEPS["peers"].build(lab(rows=("dps",), scales=(1.0, 4.0)))
    (row,) = (r for r in results if isinstance(r, PeerRow) and r.about.method == "dps")
    assert row.search is not None
    assert [trial.scale for trial in row.search.trials] == [1.0, 4.0] * 6


def test_no_scale_that_is_given_goes_untried() -> None:
    assert {trial.scale for trial in trials("dps", 3, (1.0, 2.0, 4.0))} == {1.0, 2.0, 4.0}
    with pytest.raises(UserError, match=r"2 trials, .* fewer than 3 scales; add --set trials=3"):
        trials("dps", 2, (1.0, 2.0, 4.0))


def test_every_row_has_the_same_number_of_trials_on_the_same_seeds_and_a_curve() -> None:
    results = list(SWEEPS["peers"].build(lab()))
    rows = [result for result in results if isinstance(result, PeerRow)]
    assert {row.about.method for row in rows} == set(ROWS)
    tried = {
        tuple((s.samples.first_seed, s.samples.count) for s in row.search.scores)
        for row in rows
        if row.search
    }
    assert len(tried) == 1
    drawn = set()
    for row in rows:
        (curve,) = (r for r in results if isinstance(r, Curve) and r.about == row.about)
        middle = [score.samples.key for score in curve.points[STRENGTHS.index(1.0)]]
        assert [score.samples.key for score in row.figures.scores] == middle
        assert len(row.beliefs) == len(row.seeds) == BUDGETS["default"].units
        drawn |= {
            tuple((point.samples.first_seed, point.samples.count) for point in points)
            for points in curve.points
        }
    assert len(drawn) == 1  # every method and strength: the same seeds, unit by unit


def test_unguided_samples_are_as_many_as_the_guided_ones_and_from_the_same_seeds() -> None:
    results = SWEEPS["peers"].build(lab(rows=("unguided", "ppap")))
    rows = {result.about.method: result for result in results if isinstance(result, Row)}
    assert set(rows) == {"unguided", "ppap"}
    drawn = {
        name: [(score.samples.first_seed, score.samples.count) for score in row.figures.scores]
        for name, row in rows.items()
    }
    assert drawn["unguided"] == drawn["ppap"]
    assert rows["unguided"].seeds == rows["ppap"].seeds
    assert rows["unguided"].figures.quality == rows["ppap"].figures.quality


def test_a_curve_goes_on_to_twice_its_strength_as_long_as_its_end_is_best() -> None:
    results = SWEEPS["peers"].build(lab(rows=("dps",)))
    (curve,) = (r for r in results if isinstance(r, Curve) and r.about.method == "dps")
    reached = [getattr(points[0].samples, "strength") for points in curve.points]  # noqa: B009
    assert reached == [*STRENGTHS, *(2.0 * 2**k for k in range(1, 7))]
    further = [isinstance(points[0].samples, ExtendedPeerSamples) for points in curve.points]
    assert further == [False] * len(STRENGTHS) + [True] * 6


def test_every_method_is_held_against_ppap_and_with_experts_against_itself() -> None:
    results = list(SWEEPS["peers"].build(lab()))
    claims = [result for result in results if isinstance(result, Claim)]
    arms = {result.about.method for result in results if isinstance(result, Curve)}
    assert {side for claim in claims for side in (claim.ours, claim.theirs)} == arms
    fewer = {name for name in arms if name.endswith(" steps")}
    assert {c.ours for c in claims if c.family == "near"} == arms - {"ppap"} - fewer
    assert {c.ours for c in claims if c.family == "in fewer steps: near"} == fewer
    helped = {(c.ours, c.theirs) for c in claims if c.family == "combined"}
    assert ("tfg + experts on x_0", "tfg") in helped
    assert len(helped) == sum(" + " in name for name in ROWS)
    assert len({claim.about.method for claim in claims}) == len(claims)


def test_what_costs_more_draws_in_fewer_steps_too_and_is_held_against_ppap_refined() -> None:
    results = list(SWEEPS["peers"].build(lab()))
    rows = {r.about.method: r for r in results if isinstance(r, PeerRow)}
    steps = {name: recipe.sampler.steps for name, recipe in ROWS.items()}
    fewer = {name: count for name, count in steps.items() if count != 25}
    assert fewer == {
        "x0-gradient in 8 steps": 8, "dps in 10 steps": 10, "freedom in 5 steps": 5,
        "universal in 5 steps": 5, "tfg in 5 steps": 5,
    }  # fmt: skip
    for name, row in rows.items():
        drawn = {score.samples.sampler for score in row.figures.scores}
        assert row.search is not None
        tried = {score.samples.sampler for score in row.search.scores}
        assert drawn == tried == {DDIM(fewer.get(name, 25))}
        assert row.sampler == f"ddim{fewer.get(name, 25)}"
    claims = [result for result in results if isinstance(result, Claim)]
    for refined in ("ppap, held back", "ppap, calibrated"):
        for where, quantity in (("near", "score_at_matched_distance"), ("far", "best_score")):
            family = [c for c in claims if c.family == f"{refined}: {where}, at equal cost"]
            assert {claim.theirs for claim in family} == {
                "naive", "single (ADM-G)", "elucd", "mpgd", *fewer,
            }  # fmt: skip
            assert {(claim.ours, claim.quantity) for claim in family} == {(refined, quantity)}


def test_calibrated_logits_have_a_row_where_there_are_classes_alone() -> None:
    results = list(SWEEPS["peers"].build(lab(setting=load_setting("scenes"))))
    for shown, tasks in (("resnet", 1), ("depth", 0), ("segmentation", 0), ("all three", 1)):
        own = [r for r in results if r.about.predictor == shown]
        assert sum(isinstance(r, PeerRow) for r in own) == len(ROWS) - 1 + tasks, shown
        names = {r.about.method for r in own if "calibrated" in r.about.method}
        assert bool(names) == bool(tasks)


def test_rows_are_chosen_by_their_labels() -> None:
    some = list(SWEEPS["peers"].build(lab(rows=("tfg",))))
    claims = {result.about.method for result in some if isinstance(result, Claim)}
    assert claims == {"tfg beats ppap", "tfg reaches further than ppap"}
    others = {result.about.method for result in some if not isinstance(result, Claim)}
    assert others == {"tfg", "ppap"}  # with their reference
    # Their tests are corrected as they are where all rows are run.
    whole = [r for r in SWEEPS["peers"].build(lab()) if isinstance(r, Claim)]
    sizes = {(r.about.predictor, r.family): r.comparisons for r in whole}
    assert sizes == Counter((r.about.predictor, r.family) for r in whole)
    for result in some:
        if isinstance(result, Claim):
            assert result.comparisons == sizes[result.about.predictor, result.family] > 1


def test_a_claim_comes_with_both_of_its_curves_or_not_at_all() -> None:
    some = list(SWEEPS["peers"].build(lab(rows=("ppap*",))))
    measured = {result.about.method for result in some if isinstance(result, Curve)}
    claims = [result for result in some if isinstance(result, Claim)]
    assert {"ppap, held back beats ppap", "ppap, calibrated beats ppap"} <= {
        claim.about.method for claim in claims
    }
    assert {side for claim in claims for side in (claim.ours, claim.theirs)} <= measured
