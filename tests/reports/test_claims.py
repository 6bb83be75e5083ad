"""From curves to verdicts: what is compared, what cannot be, and what the test decides."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppap.evaluation.curves import Curve
from reports.__main__ import main
from reports.arms import Arm, Claim
from reports.claims import FEWEST, Finding, Reading, read_contrast, settle
from reports.records import RecordError, read_folder
from tests.reports.conftest import Record, claim, curve, write_folder


def settled(*records: Record) -> list[Finding]:
    claims = [Claim.of(record) for record in records if record["kind"] == "claim"]
    arms = [Arm.of(record) for record in records if record["kind"] == "curve"]
    (findings,) = settle([(claims, arms)])
    return findings


def arm(
    method: str,
    scores: dict[int, list[float]],
    distances: list[float] | None = None,
    **changes: Any,
) -> Record:
    """Scores of each unit at scales 1, 2, 4, ... and at distances 1, e, e², ... by default."""
    count = len(next(iter(scores.values())))
    distances = distances or [math.exp(place) for place in range(count)]
    blank = curve("single", units=1)["points"][0]
    points = [
        blank | {"unit": unit, "scale": 2.0**k, "score": values[k], "pixel_fid": distances[k]}
        for unit, values in scores.items()
        for k in range(count)
    ]
    named = {"method": method, "key": f"curve-{method}", "units": list(scores), "points": points}
    return curve("single") | named | changes


def shifted(method: str, by: list[float], base: tuple[float, ...] = (0.2, 0.4, 0.6)) -> Record:
    """A unit for each shift of a line over distances 1 to e²."""
    return arm(method, {u: [b + value for b in base] for u, value in enumerate(by)})


NONE = [0.0] * 8
WOBBLE = [0.01 * ((3 * k) % 8 - 3.5) for k in range(8)]


def versus(**changes: Any) -> Record:
    return claim(**({"ours": "a", "theirs": "b"} | changes))


def test_the_score_is_read_at_the_middle_of_the_distances_that_all_units_reach() -> None:
    near = arm("a", {0: [0.0, 0.3], 1: [0.1, 0.4]}, [1.0, math.e**3])
    far = arm("b", {0: [0.0, 0.4], 1: [0.0, 0.8]}, [math.e, math.e**5])
    reading = read_contrast(Claim.of(versus()), Arm.of(near), Arm.of(far))
    # From e to e³: in the middle, e², near is at 2/3 of its way and far at 1/4 of its.
    assert reading.ours == pytest.approx((0.2, 0.3))
    assert reading.theirs == pytest.approx((0.1, 0.2))
    assert reading.where == "at distance 7.39"
    given = read_contrast(Claim.of(versus(at=math.e)), Arm.of(near), Arm.of(far))
    assert given.ours == pytest.approx((0.1, 0.2))
    assert given.theirs == (0.0, 0.0)


def test_the_distance_is_read_at_the_middle_of_the_scores_that_all_units_reach() -> None:
    a, b = shifted("a", [0.0, 0.1]), shifted("b", [-0.1, 0.0])
    reading = read_contrast(
        Claim.of(versus(quantity="distance_at_matched_score")), Arm.of(a), Arm.of(b)
    )
    # Scores from 0.3 to 0.5 are common: at 0.4, each unit's line is at (0.4 - start) / 0.2.
    assert reading.ours == pytest.approx((math.e, math.e**0.5))
    assert reading.theirs == pytest.approx((math.e**1.5, math.e))
    assert reading.where == "at accuracy 0.4"


def at_high_score(quantity: str, ours: list[float], theirs: list[float]) -> Reading:
    """Of two arms whose scores rise from 0 to 1 over scales, one at twice the other's distances."""
    measure = {"saturation_ratio_at_high_score": "saturation_bright"}.get(quantity, "recall")
    records = [
        arm(name, {0: [0.0, 0.5, 1.0]}, [start, start * 4, start * 16])
        for name, start in (("a", 2.0), ("b", 1.0))
    ]
    for record, values in zip(records, (ours, theirs), strict=True):
        for point, value in zip(record["points"], values, strict=True):
            point[measure] = value
    a, b = map(Arm.of, records)
    return read_contrast(Claim.of(versus(quantity=quantity)), a, b)


def test_quality_is_read_at_nine_tenths_of_the_score_that_both_reach() -> None:
    flat = [0.5] * 3
    found = at_high_score("distance_ratio_at_high_score", flat, flat)
    assert (found.ours, found.theirs) == (pytest.approx((2.0,)), (1.0,))
    assert found.where == "at accuracy 0.9"
    # Four fifths of the way from the second scale to the third.
    found = at_high_score("saturation_ratio_at_high_score", [0.0, 0.1, 0.2], [0.0, 0.3, 0.4])
    assert found.ours == pytest.approx((0.18 / 0.38,))
    found = at_high_score("recall_at_high_score", [0.9, 0.4, 0.3], [0.9, 0.6, 0.5])
    assert (found.ours, found.theirs) == (pytest.approx((0.32,)), pytest.approx((0.52,)))


def test_what_was_not_measured_at_a_score_is_not_compared() -> None:
    unknown = at_high_score("recall_at_high_score", [0.9, 0.4, None], [0.9, 0.6, 0.5])  # type: ignore[list-item]
    assert unknown.missing == "not every unit has recall at accuracy 0.9"
    none = at_high_score("saturation_ratio_at_high_score", [0.0, 0.1, 0.2], [0.0, 0.0, 0.0])
    assert none.missing == "b has no saturation_bright to compare with"


def test_where_a_curve_has_a_score_twice_the_lesser_distance_counts() -> None:
    there_and_back = Curve.of([1, 2, 4], [1.0, math.e, math.e**2], [0.0, 1.0, 0.0])
    assert there_and_back.measure_at(0.5, [0.0, 1.0, 9.0]) == pytest.approx(0.5)
    assert math.isnan(there_and_back.measure_at(2.0, [0.0, 1.0, 9.0]))


def test_the_area_is_the_mean_score_over_the_distances_that_all_units_reach() -> None:
    a = arm("a", {0: [0.0, 0.2, 0.4]})
    b = arm("b", {0: [0.1, 0.1, 0.1]}, [math.e, math.e**2, math.e**3])
    reading = read_contrast(Claim.of(versus(quantity="area")), Arm.of(a), Arm.of(b))
    assert reading.ours == pytest.approx((0.3,))
    assert reading.theirs == pytest.approx((0.1,))
    assert reading.where == "mean over distances from 2.72 to 7.39"


def test_the_best_scale_is_the_other_units_choice_and_not_each_units_luck() -> None:
    a = arm("a", {0: [0.1, 0.5, 0.9], 1: [0.1, 0.8, 0.2]})
    b = arm("b", {0: [0.3, 0.2, 0.1], 1: [0.3, 0.2, 0.1]})
    reading = read_contrast(Claim.of(versus(quantity="best_score")), Arm.of(a), Arm.of(b))
    assert reading.ours == (0.5, 0.2)  # each where the other is best
    assert reading.theirs == (0.3, 0.3)
    assert reading.where == "at scales 2 and 1"


def test_collapse_is_what_the_largest_common_scale_loses_to_the_best_below_it() -> None:
    a = arm("a", {0: [0.1, 0.9, 0.7, 0.2], 1: [0.1, 0.8, 0.7, 0.2]})
    b = arm("b", {0: [0.3, 0.5, 0.6], 1: [0.3, 0.5, 0.6]})
    reading = read_contrast(Claim.of(versus(quantity="collapse")), Arm.of(a), Arm.of(b))
    assert reading.ours == pytest.approx((-0.2, -0.1))
    assert reading.theirs == (0.0, 0.0)
    assert reading.where == "up to scale 4"


def test_of_an_error_the_least_is_best() -> None:
    error = {"metric": "depth_rmse", "higher_is_better": False}
    a = arm("a", {0: [0.3, 0.1, 0.2], 1: [0.3, 0.1, 0.2]}, **error)
    b = arm("b", {0: [0.3, 0.2, 0.4], 1: [0.3, 0.2, 0.4]}, **error)
    best, collapse = (
        read_contrast(Claim.of(versus(quantity=quantity)), Arm.of(a), Arm.of(b))
        for quantity in ("best_score", "collapse")
    )
    assert (best.ours, best.theirs) == ((0.1, 0.1), (0.2, 0.2))
    assert collapse.ours == pytest.approx((0.1, 0.1))
    assert collapse.theirs == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("quantity", ["score_at_matched_distance", "area"])
def test_distances_that_are_not_shared_are_not_reached(quantity: str) -> None:
    a = arm("a", {u: [0.0, 0.3] for u in range(8)}, [1.0, 2.0])
    b = arm("b", {u: [0.0, 0.3] for u in range(8)}, [3.0, 4.0])
    (finding,) = settled(a, b, versus(quantity=quantity))
    assert (finding.verdict, finding.test, finding.p) == ("open", None, 1.0)
    assert "not reached" in finding.reason


def test_a_level_beyond_what_one_unit_reaches_is_not_reached() -> None:
    a, b = shifted("a", NONE), shifted("b", NONE)
    distances = versus(at=8.0)
    scores = versus(quantity="distance_at_matched_score", at=0.7, method="b2", key="b2")
    for finding in settled(a, b, distances, scores):
        assert finding.verdict == "open"
        assert finding.reason.startswith("not reached: all units of both reach")


@pytest.mark.parametrize(
    ("gain", "unbounded", "verdict"),
    [
        (0.1, "a", "supported"),  # more of its curve can only add to what is shown
        (0.1, "b", "open"),
        (-0.1, "a", "open"),
        (-0.1, "b", "refuted"),
        (0.1, "ab", "open"),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_an_arm_that_is_best_at_its_largest_scale_may_be_better_yet(
    gain: float, unbounded: str, verdict: str, higher: bool
) -> None:
    sign = 1 if higher else -1
    said = {"metric": "error", "higher_is_better": higher}
    a, b = (
        shifted(name, [sign * value for value in by], (0.2, 0.2, 0.2))
        | said
        | {"unbounded": name in unbounded}
        for name, by in (("a", [gain + w for w in WOBBLE]), ("b", NONE))
    )
    expected = "greater" if higher else "less"
    (finding,) = settled(a, b, versus(quantity="best_score", expected=expected, margin=0.2))
    assert finding.verdict == verdict
    assert finding.reason.startswith("not reached: ") == (verdict == "open")
    assert "though" not in finding.reason, "the rest of the curve may make it matter"
    (equal,) = settled(a, b, versus(quantity="best_score", expected="equivalent", margin=0.2))
    assert equal.verdict == "open"


@pytest.mark.parametrize(
    ("gain", "expected", "verdict", "reason"),
    [
        (0.10, "greater", "supported", "the difference is above 0"),
        (0.10, "less", "refuted", "the difference is above 0"),
        (-0.10, "less", "supported", "the difference is below 0"),
        (-0.10, "greater", "refuted", "the difference is below 0"),
        (0.01, "greater", "open", "neither a difference is shown nor its absence"),
        (0.00, "equivalent", "supported", "the difference is smaller than 0.03"),
        (0.10, "equivalent", "refuted", "the difference is larger than 0.03"),
        (0.03, "equivalent", "open", "the difference may be smaller or larger than 0.03"),
    ],
)
def test_a_verdict_takes_a_test(gain: float, expected: str, verdict: str, reason: str) -> None:
    margin = 0.03 if expected == "equivalent" else None
    a, b = shifted("a", [gain + w for w in WOBBLE]), shifted("b", NONE)
    (finding,) = settled(a, b, versus(expected=expected, margin=margin))
    assert finding.test is not None
    assert finding.test.value == pytest.approx(gain)
    assert (finding.verdict, finding.reason) == (verdict, reason)


def test_a_difference_that_cannot_matter_refutes_that_there_is_one() -> None:
    a, b = shifted("a", WOBBLE), shifted("b", NONE)
    (finding,) = settled(a, b, versus(margin=0.05))
    assert finding.verdict == "refuted"
    assert finding.reason == "the difference is smaller than 0.05, the least that matters"
    sure = shifted("a", [0.02 + w / 10 for w in WOBBLE])
    (finding,) = settled(sure, b, versus(margin=0.05))
    assert finding.verdict == "supported"
    assert finding.reason.startswith("the difference is above 0, though smaller than 0.05")


def test_fewer_than_eight_units_leave_a_claim_open_whatever_their_p() -> None:
    for units, verdict in ((1, "open"), (FEWEST - 1, "open"), (FEWEST, "supported")):
        a = shifted("a", [0.3 + w for w in WOBBLE[:units]])
        (finding,) = settled(a, shifted("b", NONE[:units]), versus())
        assert finding.verdict == verdict
        assert finding.test is not None
        assert math.isnan(finding.test.p) if units == 1 else finding.test.p < 1e-4


def test_units_pair_up_by_their_number() -> None:
    a = arm("a", {u: [0.5 + 0.01 * u] * 2 for u in range(10)})
    b = arm("b", {u: [0.01 * u] * 2 for u in range(11, 1, -1)})
    (finding,) = settled(a, b, versus())
    assert finding.reading.units == tuple(range(2, 10))
    assert finding.test is not None
    assert (finding.test.value, finding.test.units) == (pytest.approx(0.5), 8)
    (apart,) = settled(a, arm("b", {99: [0.0, 0.0]}), versus())
    assert apart.reason == "the arms have no unit in common"


def test_an_arm_that_is_missing_leaves_its_claim_open() -> None:
    (finding,) = settled(shifted("a", NONE), versus())
    assert finding.verdict == "open"
    assert finding.reason == "no curve of b has been measured"


def test_an_unguided_arm_belongs_to_every_predictor() -> None:
    (finding,) = settled(
        curve("unguided", "none"),
        curve("single"),
        claim(ours="single", theirs="unguided", quantity="best_score"),
    )
    assert finding.verdict == "supported"
    assert finding.means == pytest.approx((0.89, 0.1))


def test_families_are_of_a_sweep_and_a_predictor_and_whole_whatever_was_asked_for() -> None:
    a, b = Arm.of(shifted("a", [0.02 + w for w in WOBBLE])), Arm.of(shifted("b", NONE))
    elsewhere = [replace(arm, predictor="vit") for arm in (a, b)]

    def said(name: str, family: str, **changes: Any) -> Claim:
        about = {"method": name, "key": name, "family": family, "margin": None}
        return Claim.of(versus(**about | changes))

    ((alone,),) = settle([([said("1", "x")], [a, b])])
    assert alone.p == alone.p_corrected
    (one, other, gone), (two,), (three,) = settle(
        [
            ([said("1", "x"), said("4", "y"), said("3", "x", theirs="c")], [a, b]),
            ([said("2", "x")], [a, b]),  # of another sweep
            ([said("5", "x", predictor="vit", comparisons=10)], elsewhere),
        ]
    )
    assert gone.p == gone.p_corrected == 1.0
    assert one.p_corrected == pytest.approx(2 * alone.p), "untested ones count"
    assert two.p_corrected == other.p_corrected == alone.p
    assert three.p_corrected == pytest.approx(10 * alone.p), "so do those not asked for"


def test_the_best_of_more_scales_is_not_better_by_luck() -> None:
    # Arms without a true difference: on a plateau of six scales, and at one.
    generator = np.random.default_rng(0)
    better = []
    for _ in range(200):
        records = (
            arm(name, dict(enumerate(generator.normal(0.9, 0.02, (8, count)).tolist())))
            for name, count in (("a", 6), ("b", 1))
        )
        found = read_contrast(Claim.of(versus(quantity="best_score")), *map(Arm.of, records))
        better.append(np.mean(found.ours) - np.mean(found.theirs))
    assert abs(np.mean(better)) < 0.002


def test_a_claim_about_two_curves_is_refused_unless_it_names_its_sampler() -> None:
    other = shifted("a", [0.2] * 8) | {"sampler": "ddim25", "key": "other"}
    lines = [shifted("a", NONE), other, shifted("b", NONE), shifted("b", NONE) | other]
    lines[3] |= {"method": "b"}
    with pytest.raises(RecordError, match="2 curves of a, with samplers dpm8, ddim25; name"):
        settled(*lines, versus())
    (finding,) = settled(*lines, versus(sampler="ddim25"))
    assert finding.reading.ours == pytest.approx([0.6] * 8)


def test_curves_of_different_metrics_are_not_compared() -> None:
    with pytest.raises(RecordError, match="a is scored by accuracy and b by mean_iou"):
        settled(shifted("a", NONE), shifted("b", NONE) | {"metric": "mean_iou"}, versus())


def test_records_are_read_into_frames_and_findings(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [curve("multi-experts"), curve("single"), claim()])
    (records,) = read_folder(folder).sweeps
    assert [found.method for found in records.arms] == ["single", "multi-experts"]
    points = records.arms[0].points
    assert len(points) == 40
    assert points["gap"].iloc[4] == pytest.approx(0.72 + 0.16 - points["score"].iloc[4])
    assert [finding.verdict for finding in records.findings] == ["supported"]
    assert records.findings[0].test is not None


def test_of_an_error_the_gap_is_by_how_much_less_of_it_the_guide_sees(tmp_path: Path) -> None:
    error = {"metric": "depth_rmse", "higher_is_better": False}
    found = Arm.of(curve("single", units=1) | error)
    points = found.points
    assert points["gap"].tolist() == pytest.approx((points["score"] - points["belief"]).tolist())


def broken(**changes: Any) -> str:
    return json.dumps(curve("single", units=2) | changes)


def point(**changes: Any) -> str:
    record = curve("single", units=2)
    record["points"][3] |= changes
    return json.dumps(record)


def without(record: Record, name: str) -> str:
    return json.dumps({k: v for k, v in record.items() if k != name})


MALFORMED = {
    "no points": (broken(points=[]), "points cannot be []"),
    "units twice": (broken(units=[1, 1]), "units cannot be [1, 1]"),
    "another unit": (point(unit=7), "points[3].unit 7 is none of units [0, 1]"),
    "a scale twice": (point(scale=1.0), "unit 0 has a scale twice"),
    "another scale": (point(scale=3.0), "units 0 and 1 were not measured at the same scales"),
    "no distance": (point(pixel_fid=0.0), "points[3].pixel_fid cannot be 0.0"),
    "no score": (point(score=None), "points[3].score cannot be null"),
    "percent for a share": (point(score=88.0), "points[3].score cannot be 88.0"),
    "a share of saturation": (point(saturation=2.0), "points[3].saturation cannot be 2.0"),
    "a negative scale": (point(scale=-1.0), "points[3].scale cannot be -1.0"),
    "a flag as text": (broken(unbounded="no"), 'unbounded cannot be "no"'),
    "nothing chosen": (broken(chosen="held back"), 'chosen cannot be "held back"'),
    "provenance": (broken(provenance={}), "provenance.commit is missing"),
    "no direction": (without(curve("single"), "higher_is_better"), "higher_is_better is missing"),
    "another quantity": (json.dumps(claim(quantity="speed")), 'quantity cannot be "speed"'),
    "another expectation": (json.dumps(claim(expected="more")), 'expected cannot be "more"'),
    "equivalent within what": (
        without(claim(expected="equivalent"), "margin"),
        "margin is missing, within which",
    ),
    "equivalent within nothing": (
        json.dumps(claim(expected="equivalent", margin=None)),
        "margin cannot be null",
    ),
    "a margin below 0": (json.dumps(claim(margin=-0.1)), "margin cannot be -0.1"),
    "no statement": (json.dumps(claim(statement="")), 'statement cannot be ""'),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_curves_and_claims_are_one_clear_line(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line, problem = MALFORMED[case]
    (tmp_path / "records.jsonl").write_text(line + "\n")
    assert main(["build", str(tmp_path)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert problem in told
    assert "records.jsonl:1: c" in told


def test_the_later_record_of_a_curve_or_claim_counts(tmp_path: Path) -> None:
    later = curve("single", units=3) | {"key": "later"}
    reworded = claim(statement="It is so.") | {"key": "reworded"}
    folder = write_folder(tmp_path, [curve("single"), claim(), later, reworded])
    (records,) = read_folder(folder).sweeps
    assert [(found.key, len(found.units)) for found in records.arms] == [("later", 3)]
    assert [finding.claim.statement for finding in records.findings] == ["It is so."]
