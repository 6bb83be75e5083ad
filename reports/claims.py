"""Claims settled: each statement's contrast over units, its test, and a verdict.

``supported``, ``refuted`` or ``open``. A claim is open where fewer than `FEWEST` units were
measured, where an arm is missing, or where what it compares is not reached by every unit of both
arms; and as long as the test, corrected within the claim's family, cannot decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ppap.evaluation.curves import Curve, common_distances, common_scores
from reports.arms import Arm, Claim
from reports.schema import RecordError
from reports.statistics import Paired, holm, mean, paired

__all__ = ["FEWEST", "VERDICTS", "Finding", "Reading", "read_contrast", "settle"]

FEWEST = 8
"""Units that a verdict takes."""
LEVEL = 0.05
VERDICTS = ("supported", "refuted", "open")
HIGH = 0.9
"""Of the way from the worst score that all units of two arms reach to the best one."""
UNITS = {
    "distance_at_matched_score": "distance",
    "distance_ratio_at_high_score": "ratio of distances",
    "saturation_ratio_at_high_score": "ratio of saturations",
    "recall_at_high_score": "recall",
}
"""What quantities are measured in that are no scores."""


@dataclass(frozen=True)
class Reading:
    """A quantity of two arms, unit by unit.

    Attributes:
        units: that both arms have.
        ours: value of each unit.
        theirs: of the same units.
        where: at which distance, score, range or scale, in words.
        bound: 1 if the true difference, ours less theirs, is at least what was measured, -1 if it
            is at most that, 0 if it is neither.
        edge: the arm whose best score is at its largest scale; empty for none.
        missing: why there are no values; empty if there are.
    """

    units: tuple[int, ...] = ()
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    where: str = ""
    bound: int = 0
    edge: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim with its test and verdict.

    Attributes:
        claim: what is said.
        unit: what the difference is measured in: the metric's name, or one of :data:`UNITS`.
        reading: the values compared.
        test: of their differences; None where there are no values.
        p: of the test that may support the claim: of no difference, or where the arms are to be
            equivalent, of a difference of the margin or more; 1 where there is no test.
        p_corrected: by Holm, within the family.
        p_against: of the test that may refute it though it finds no difference the other way: of
            a difference of the margin or more, or where the arms are to be equivalent, of one
            within the margins; 1 where no margin is stated.
        p_against_corrected: by Holm, within the family.
        verdict: supported, refuted or open.
        reason: for the verdict, half a sentence.
    """

    claim: Claim
    unit: str
    reading: Reading
    test: Paired | None
    p: float
    p_corrected: float
    p_against: float
    p_against_corrected: float
    verdict: str
    reason: str

    @property
    def means(self) -> tuple[float, float]:
        """Of ours and of theirs, over units; NaN where there are no values."""
        sides = (self.reading.ours, self.reading.theirs)
        ours, theirs = (mean(side).value if side else math.nan for side in sides)
        return ours, theirs


def settle(sweeps: Iterable[tuple[Sequence[Claim], Sequence[Arm]]]) -> list[list[Finding]]:
    """The findings of sweeps of one setting and budget, in the claims' order.

    A family is one sweep's, and one predictor's, so that no verdict depends on what else was run.
    A claim that could not be tested, or whose arms were not asked for, counts in its family as one
    that shows nothing.

    Raises:
        RecordError: if several curves, or curves of different metrics, answer to a claim.
    """
    groups = [[_tested(claim, arms) for claim in claims] for claims, arms in sweeps]
    families: dict[tuple[int, str, str], list[Finding]] = {}
    for number, group in enumerate(groups):
        for finding in group:
            about = number, finding.claim.predictor, finding.claim.family
            families.setdefault(about, []).append(finding)
    judged: dict[str, Finding] = {}
    for members in families.values():
        size = max(len(members), *(finding.claim.comparisons or 0 for finding in members))
        untested = [1.0] * (size - len(members))
        corrected = [
            holm([*found, *untested])[: len(members)]
            for found in ([f.p for f in members], [f.p_against for f in members])
        ]
        for finding, p, against in zip(members, *corrected, strict=True):
            whole = replace(finding, p_corrected=p, p_against_corrected=against)
            verdict, reason = _verdict(whole)
            judged[finding.claim.key] = replace(whole, verdict=verdict, reason=reason)
    return [[judged[finding.claim.key] for finding in group] for group in groups]


def read_contrast(claim: Claim, ours: Arm, theirs: Arm) -> Reading:
    """The claim's quantity of both arms, for the units that both have.

    Every quantity is read within what all those units of both arms reach: nothing is
    extrapolated, and what is not reached is said.
    """
    units = tuple(unit for unit in ours.units if unit in theirs.units)
    if not units:
        return Reading(missing="the arms have no unit in common")
    read = {
        "score_at_matched_distance": _score_at_matched_distance,
        "distance_at_matched_score": _distance_at_matched_score,
        "distance_ratio_at_high_score": partial(_at_high_score, "pixel_fid", True),
        "saturation_ratio_at_high_score": partial(_at_high_score, "saturation_bright", True),
        "recall_at_high_score": partial(_at_high_score, "recall", False),
        "area": _area,
        "best_score": _best_score,
        "collapse": _collapse,
    }[claim.quantity]
    return replace(read(units, ours, theirs, claim.at), units=units)


def _score_at_matched_distance(
    units: Sequence[int], ours: Arm, theirs: Arm, at: float | None
) -> Reading:
    curves = _curves(units, ours, theirs)
    reach = common_distances(curve for side in curves for curve in side)
    middle = reach and math.sqrt(reach[0] * reach[1])
    return _matched(curves, reach, middle if at is None else at, Curve.score_at, "distance", "s")


def _distance_at_matched_score(
    units: Sequence[int], ours: Arm, theirs: Arm, at: float | None
) -> Reading:
    curves = _curves(units, ours, theirs)
    reach = common_scores(curve for side in curves for curve in side)
    middle = reach and (reach[0] + reach[1]) / 2
    return _matched(curves, reach, middle if at is None else at, Curve.distance_at, ours.metric)


def _curves(units: Sequence[int], ours: Arm, theirs: Arm) -> list[list[Curve]]:
    """Of either arm those of the units."""
    return [[arm.curves[unit] for unit in units] for arm in (ours, theirs)]


def _matched(
    curves: Sequence[Sequence[Curve]],
    reach: tuple[float, float] | None,
    level: float | None,
    read: Callable[[Curve, float], float],
    what: str,
    plural: str = "",
) -> Reading:
    """What curves of two arms read where they are at one level, if all of them reach it."""
    if reach is None or level is None:
        return Reading(missing=f"not reached: there is no {what} that all units of both reach")
    if not reach[0] <= level <= reach[1]:
        return Reading(
            missing=f"not reached: all units of both reach {what}{plural} from {_range(reach)}, "
            f"not {level:.4g}"
        )
    ours, theirs = (tuple(read(curve, level) for curve in side) for side in curves)
    return Reading((), ours, theirs, f"at {what} {level:.3g}")


def _at_high_score(
    measure: str,
    ratio: bool,
    units: Sequence[int],
    ours: Arm,
    theirs: Arm,
    at: float | None,
) -> Reading:
    """A measure of both arms' points where they have the same high score, near the best of both."""
    reach = common_scores(curve for side in _curves(units, ours, theirs) for curve in side)
    if reach is None:
        return Reading(missing=f"not reached: there is no {ours.metric} that all units reach")
    worst, best = reach if ours.higher_is_better else reach[::-1]
    level = worst + HIGH * (best - worst) if at is None else at
    read = [
        tuple(
            arm.curves[unit].distance_at(level)
            if measure == "pixel_fid"
            else arm.measure_at(unit, level, measure)
            for unit in units
        )
        for arm in (ours, theirs)
    ]
    if any(math.isnan(value) for side in read for value in side):
        return Reading(missing=f"not every unit has {measure} at {ours.metric} {level:.3g}")
    where = f"at {ours.metric} {level:.3g}"
    if not ratio:
        return Reading((), *read, where)
    if not all(read[1]):
        return Reading(missing=f"{theirs.method} has no {measure} to compare with")
    ratios = tuple(our / their for our, their in zip(*read, strict=True))
    return Reading((), ratios, (1.0,) * len(ratios), where)


def _area(units: Sequence[int], ours: Arm, theirs: Arm, at: float | None) -> Reading:
    curves = _curves(units, ours, theirs)
    reach = common_distances(curve for side in curves for curve in side)
    if reach is None or reach[0] == reach[1]:
        return Reading(missing="not reached: there are no distances that all units of both reach")
    values = [[curve.area(*reach) for curve in side] for side in curves]
    where = f"mean over distances from {_range(reach)}"
    return Reading((), tuple(values[0]), tuple(values[1]), where)


def _best_score(units: Sequence[int], ours: Arm, theirs: Arm, at: float | None) -> Reading:
    """At the best of each arm's scales. Where that is the largest, what is beyond is better yet.

    Each unit is read where the arm's other units are best.
    """
    if ours.unbounded and theirs.unbounded:
        return Reading(missing="not reached: both arms are best at their largest scales")
    better = 1 if ours.higher_is_better else -1
    scales = ours.best_scale(), theirs.best_scale()
    found = ours.best_scores(), theirs.best_scores()
    values = [tuple(side[unit] for unit in units) for side in found]
    where = f"at scales {scales[0]:g} and {scales[1]:g}"
    bound = better * (ours.unbounded - theirs.unbounded)
    edge = ours.method * ours.unbounded or theirs.method * theirs.unbounded
    return Reading((), values[0], values[1], where, bound, edge)


def _collapse(units: Sequence[int], ours: Arm, theirs: Arm, at: float | None) -> Reading:
    """Score at the largest scale that both arms have, less the best at that scale or below."""
    shared = sorted(set(ours.scales) & set(theirs.scales))
    if not shared:
        return Reading(missing="not reached: the arms have no scale in common")
    last, values = shared[-1], []
    for arm in (ours, theirs):
        end, best = arm.scores(last), arm.best_scores(last)
        values.append(tuple(end[unit] - best[unit] for unit in units))
    return Reading((), values[0], values[1], f"up to scale {last:g}")


def _tested(claim: Claim, arms: Sequence[Arm]) -> Finding:
    """The claim with its own test; no verdict yet."""
    ours, theirs = (_arm(claim, method, arms) for method in (claim.ours, claim.theirs))
    unit = UNITS.get(claim.quantity, "score")
    if not ours or not theirs:
        gone = [m for m, arm in ((claim.ours, ours), (claim.theirs, theirs)) if not arm]
        reading = Reading(missing=f"no curve of {' and '.join(gone)} has been measured")
        known = ours or theirs
        unit = known.metric if known and unit == "score" else unit
    else:
        if (ours.metric, ours.higher_is_better) != (theirs.metric, theirs.higher_is_better):
            raise RecordError(
                f"claim {claim.name}: {claim.ours} is scored by {ours.metric} and "
                f"{claim.theirs} by {theirs.metric}",
                "compare curves of one metric",
            )
        unit = ours.metric if unit == "score" else unit
        reading = read_contrast(claim, ours, theirs)
    test = paired(reading.ours, reading.theirs) if reading.ours else None
    p, against = _p_values(claim, test)
    return Finding(claim, unit, reading, test, p, 1.0, against, 1.0, "open", "")


def _p_values(claim: Claim, test: Paired | None) -> tuple[float, float]:
    """Of the test that may support the claim, and of the one that may refute it."""
    if test is None or test.units < 2:
        return 1.0, 1.0
    if claim.margin is None:
        return test.p, 1.0
    within = test.p_equivalent(claim.margin)
    equivalent = claim.expected == "equivalent"
    return (within, test.p_beyond(claim.margin)) if equivalent else (test.p, within)


def _verdict(finding: Finding) -> tuple[str, str]:
    claim, test = finding.claim, finding.test
    if test is None:
        return "open", finding.reading.missing
    if test.units < FEWEST:
        return "open", f"{test.units} unit{'s' * (test.units > 1)}, where a verdict takes {FEWEST}"
    shown, against = finding.p_corrected < LEVEL, finding.p_against_corrected < LEVEL
    if bound := finding.reading.bound:
        # The rest of one arm's curve can only add to what is shown, or undo it.
        if claim.expected == "equivalent" or not shown or bound * test.value < 0:
            return "open", f"not reached: {finding.reading.edge} is best at its largest scale"
        against = False
    if claim.expected == "equivalent":
        if shown:
            return "supported", f"the difference is smaller than {claim.margin:g}"
        if against:
            return "refuted", f"the difference is larger than {claim.margin:g}"
        return "open", f"the difference may be smaller or larger than {claim.margin:g}"
    small = f"smaller than {claim.margin:g}, the least that matters" if against else ""
    if shown:
        as_said = (test.value > 0) == (claim.expected == "greater")
        told = f"the difference is {'above' if test.value > 0 else 'below'} 0"
        note = f", though {small}" if small else ""
        return "supported" if as_said else "refuted", told + note
    if small:
        return "refuted", f"the difference is {small}"
    return "open", "neither a difference is shown nor its absence"


def _arm(claim: Claim, method: str, arms: Sequence[Arm]) -> Arm | None:
    """The curve that a claim means.

    Raises:
        RecordError: if there are several.
    """
    named = [arm for arm in arms if arm.method == method and claim.sampler in (None, arm.sampler)]
    found = [arm for arm in named if arm.predictor == claim.predictor]
    found = found or [arm for arm in named if arm.predictor == "none"]
    if len(found) > 1:
        samplers = ", ".join(arm.sampler for arm in found)
        raise RecordError(
            f"claim {claim.name}: {len(found)} curves of {method}, with samplers {samplers}",
            "name the claim's sampler, or give the curves methods of their own",
        )
    return found[0] if found else None


def _range(reach: tuple[float, float]) -> str:
    return f"{reach[0]:.3g} to {reach[1]:.3g}"
