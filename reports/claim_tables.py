"""Tables of claims and of the curves that decide them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from ppap.evaluation.curves import common_distances
from reports.arms import Arm
from reports.claims import Finding
from reports.metrics import METRICS
from reports.schema import POINT_MEASURES
from reports.statistics import mean_if_measured
from reports.tables import Cell, Table, p_text

__all__ = [
    "arms_csv",
    "arms_legend",
    "arms_table",
    "claims_csv",
    "claims_legend",
    "claims_table",
    "difference_cell",
    "evidence",
    "metric_name",
]


def claims_table(findings: Sequence[Finding]) -> Table:
    """A line for each claim: verdict, difference with interval, p, arms, and what was compared."""
    header = (
        "claim", "verdict", "predictor", "difference", "p (Holm)", "compared", "ours",
        "theirs", "units", "margin", "why", "family", "source",
    )  # fmt: skip
    words = {"claim", "verdict", "predictor", "compared", "ours", "theirs", "why", "family"}
    words |= {"source"}
    lines = []
    for finding in findings:
        claim, test = finding.claim, finding.test
        ours, theirs = finding.means
        lines.append(
            (
                _word(claim.name),
                _word(finding.verdict),
                _word(claim.predictor),
                difference_cell(finding),
                Cell("") if test is None else _p_cell(finding.p_corrected),
                _word(compared(finding)),
                Cell(claim.ours, _shown(finding, ours), claim.ours),
                Cell(claim.theirs, _shown(finding, theirs), claim.theirs),
                Cell(str(len(finding.reading.units)), value=len(finding.reading.units)),
                Cell("" if claim.margin is None else f"{claim.margin:g}", value=claim.margin or ""),
                _word(finding.reason),
                _word(claim.family),
                _word(claim.source),
            )
        )
    keys = tuple(finding.claim.key for finding in findings)
    primary = frozenset(("claim", "verdict", "predictor", "difference", "p (Holm)", "compared"))
    return Table(header, tuple(h in words for h in header), tuple(lines), keys, primary)


def claims_csv(findings: Sequence[Finding]) -> str:
    """The claims as CSV, with every figure of their tests; six significant digits."""
    lines = []
    for finding in findings:
        claim, test = finding.claim, finding.test
        ours, theirs = finding.means
        lines.append(
            {
                "claim": claim.name,
                "predictor": claim.predictor,
                "verdict": finding.verdict,
                "reason": finding.reason,
                "statement": claim.statement,
                "source": claim.source,
                "family": claim.family,
                "quantity": claim.quantity,
                "unit": finding.unit,
                "compared": finding.reading.where,
                "expected": claim.expected,
                "margin": claim.margin,
                "ours": claim.ours,
                "theirs": claim.theirs,
                "ours_mean": ours,
                "theirs_mean": theirs,
                "units": len(finding.reading.units),
                "difference": test.value if test else math.nan,
                "low": test.low if test else math.nan,
                "high": test.high if test else math.nan,
                "t": test.t if test else math.nan,
                "p": finding.p,
                "p_corrected": finding.p_corrected,
                "p_against": finding.p_against,
                "p_against_corrected": finding.p_against_corrected,
            }
        )
    return _csv(pd.DataFrame(lines))


def claims_legend() -> list[str]:
    """What the columns of claims mean, a line each."""
    return [
        (
            "difference: ours less theirs, mean over units with its 95 % t interval. A unit is "
            "a training seed, or a block of sampling seeds where nothing is trained; both arms "
            "have the same units, and unit by unit the same sampling seeds and targets."
        ),
        (
            "compared: read off each unit's curve, which is taken to be straight in score and "
            "in the logarithm of the distance between neighbouring scales; only where all units "
            "of both arms reach, and by default in the middle of that."
        ),
        (
            "p: of the test that may support the claim: a paired t-test over units, two-sided; "
            "of equivalence, two one-sided tests against the margin, the smallest difference "
            "that matters. Corrected by Holm within the family, which is of one sweep and "
            "predictor, and in which untested claims and those not asked for count. Best scores "
            "are read, unit by unit, at the scale that is best for the other units."
        ),
        (
            "verdict: supported or refuted at p < .05; open otherwise, with fewer than eight "
            "units, and where what is compared is not reached. A claim of a difference is "
            "refuted, too, if a difference that matters is ruled out."
        ),
    ]


def arms_table(arms: Sequence[Arm]) -> Table:
    """A line for each arm: its best score and what it costs in distance, area, collapse and gap."""
    lines: list[dict[str, Cell]] = []
    for arm in arms:
        best, last = arm.best_scale(), arm.scales[-1]
        at_best, spec = arm.best_points, _spec(arm)
        ends, tops = arm.scores(last), arm.scores(best)
        fall = [ends[unit] - tops[unit] for unit in arm.units if last != best]
        lines.append(
            {
                "method": _word(arm.method),
                "predictor": _word(arm.predictor),
                "scored by": _word(metric_name(arm)),
                "best score": _mean_cell(at_best["score"], spec),
                "distance there": _mean_cell(at_best["pixel_fid"], "#.3g"),
                "area": _mean_cell(_areas(arm, arms), spec),
                "gap": _mean_cell(at_best["gap"], "+.3f"),
                "collapse": _mean_cell(fall, "+.3f"),
                "scale": Cell(f"{best:g}", "at the edge" if arm.unbounded else "", best),
                "saturation": _mean_cell(at_best["saturation_bright"], ".1%"),
                "units": Cell(str(len(arm.units)), value=len(arm.units)),
                "supervision": _word(arm.supervision or ""),
                "experts": _count(arm.experts),
                "trained steps": _count(arm.trained_steps),
                "sampler": _word(arm.sampler),
            }
        )
    header = tuple(lines[0])
    words = {"method", "predictor", "scored by", "supervision", "sampler"}
    body = tuple(tuple(line.values()) for line in lines)
    keys, primary = tuple(arm.key for arm in arms), frozenset(header[:7])
    return Table(header, tuple(h in words for h in header), body, keys, primary)


def arms_csv(arms: Sequence[Arm]) -> str:
    """Every curve as CSV: a line for each scale, means over units with their 95 % t intervals."""
    lines = []
    for arm in arms:
        for scale, points in arm.points.groupby("scale"):
            line = {
                "method": arm.method,
                "predictor": arm.predictor,
                "sampler": arm.sampler,
                "metric": arm.metric,
                "scale": float(str(scale)),
                "units": len(points),
                "samples": int(points["samples"].sum()),
            }
            for name in ("score", "pixel_fid", "gap", *POINT_MEASURES):
                found = mean_if_measured(points[name])
                ends = ("", found.value), ("_low", found.low), ("_high", found.high)
                line |= {name + end: value for end, value in ends}
            lines.append(line)
    return _csv(pd.DataFrame(lines).dropna(axis=1, how="all"))


def arms_legend(arms: Sequence[Arm]) -> list[str]:
    """What the columns of arms mean, a line each."""
    lines = [
        (
            "Brackets: 95 % t interval over units. Distance: Fréchet distance of samples and "
            "test images on principal components of pixels, which no label and no judge has a "
            "part in."
        ),
        (
            "best: at the scale that is best on average over units; at the edge where the best "
            "is still at the largest scale."
        ),
        (
            "gap: by how much the guide finds its samples better than an independent judge "
            "does, at the best scale. collapse: score at the largest scale less the best. "
            "saturation: share of pixel values at the upper end of their range, at the best scale; "
            "a black background is at the lower one."
        ),
    ]
    for arm in arms:
        if chosen := Counter(arm.record.get("chosen", ())):
            told = ", ".join(f"{name} in {count}" for name, count in chosen.most_common())
            lines.append(f"{arm.method}, {arm.predictor}: of {chosen.total()} units {told}.")
    for predictor in dict.fromkeys(arm.predictor for arm in arms if _spans(arm)):
        reach = _reach(predictor, arms)
        told = "none" if reach is None else f"{reach[0]:.3g} to {reach[1]:.3g}"
        lines.append(
            f"area, {predictor}: mean score over the logarithm of the distance, of distances that "
            f"all units of all its arms reach: {told}; n/a for an arm whose own units have none in "
            "common, which counts for no other's."
        )
    return lines


def evidence(finding: Finding) -> str:
    """What a verdict rests on, in a line: difference, interval, what was compared, units, p."""
    test = finding.test
    if test is None:
        return finding.reason
    difference = difference_cell(finding)
    parts = [
        f"{finding.claim.ours} less {finding.claim.theirs}: "
        f"{difference.text} {difference.interval}".strip()
        + f" in {compared(finding)}",
        f"{test.units} unit{'s' * (test.units > 1)}",
    ]
    if test.units > 1:
        equivalence = " for equivalence" * (finding.claim.expected == "equivalent")
        parts.append(p_text(finding.p_corrected) + equivalence)
    plain = finding.verdict == "supported" and finding.claim.expected != "equivalent"
    return ", ".join(parts) + ("" if plain and "," not in finding.reason else f"; {finding.reason}")


def compared(finding: Finding) -> str:
    """The quantity in words, and where it was read."""
    unit = METRICS[finding.unit].header if finding.unit in METRICS else finding.unit
    names = {"area": f"{unit},", "best_score": f"best {unit}", "collapse": f"{unit} lost"}
    name = names.get(finding.claim.quantity, unit)
    return f"{name} {finding.reading.where}".rstrip(" ,")


def metric_name(arm: Arm) -> str:
    """What an arm is scored by, as in a table's head."""
    return METRICS[arm.metric].header if arm.metric in METRICS else arm.metric


def _spec(arm: Arm) -> str:
    return METRICS[arm.metric].spec if arm.metric in METRICS else "#.4g"


def difference_cell(finding: Finding) -> Cell:
    """Ours less theirs, with its interval; n/a where nothing was tested."""
    if finding.test is None:
        return Cell("n/a")
    test, spec = finding.test, "+.3g" if finding.unit == "distance" else "+.3f"
    interval = "" if math.isnan(test.low) else f"[{test.low:{spec}}, {test.high:{spec}}]"
    return Cell(format(test.value, spec), interval, test.value)


def _shown(finding: Finding, value: float) -> str:
    spec = ".3g" if finding.unit == "distance" else ".3f"
    return "" if math.isnan(value) else f"({value:{spec}})"


def _reach(predictor: str, arms: Sequence[Arm]) -> tuple[float, float] | None:
    """The distances that all units of all of a predictor's arms that span any reach."""
    guided = [arm for arm in arms if arm.predictor == predictor and _spans(arm)]
    return common_distances(c for arm in guided for c in arm.curves.values()) if guided else None


def _spans(arm: Arm) -> bool:
    """Whether there are distances that all units of an arm reach.

    There are none without guidance, nor by a guide that moves no sample.
    """
    reach = common_distances(arm.curves.values())
    return reach is not None and reach[0] < reach[1]


def _areas(arm: Arm, arms: Sequence[Arm]) -> list[float]:
    reach = _reach(arm.predictor, arms) if _spans(arm) else None
    if reach is None or reach[0] == reach[1]:
        return []
    return [curve.area(*reach) for curve in arm.curves.values()]


def _mean_cell(values: Sequence[float] | pd.Series, spec: str) -> Cell:
    found = mean_if_measured(values)
    if math.isnan(found.value):
        return Cell("n/a")
    known = not math.isnan(found.low)
    interval = f"[{found.low:{spec}}, {found.high:{spec}}]" if known else ""
    return Cell(format(found.value, spec), interval, found.value)


def _p_cell(p: float) -> Cell:
    return Cell(p_text(p), value=p)


def _word(text: str) -> Cell:
    return Cell(text, value=text)


def _count(number: int | None) -> Cell:
    return Cell("n/a") if number is None else Cell(f"{number:,d}", value=number)


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
