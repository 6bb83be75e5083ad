"""The tests over units: closed forms, scipy's figures, and how often each is wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from ppap.evaluation.intervals import paired_mean
from reports.statistics import holm, mean, paired


def test_a_mean_over_units_has_a_t_interval_of_one_degree_of_freedom_less() -> None:
    found = mean([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653; the standard error is 1 / sqrt(3).
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.high - found.value == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert found.value == 2.0
    assert found.low + found.high == pytest.approx(4.0)
    assert found.units == 3


def test_two_units_by_hand() -> None:
    """With one degree of freedom Student's t is Cauchy's: p = 1 - 2 atan(t) / pi."""
    found = paired([1.0, 3.0], [0.0, 0.0])
    assert found.t == pytest.approx(2.0)
    assert found.p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi)
    within = paired([1.0, 3.0], [2.0, 2.0])  # by 0, with an error of 1
    assert within.p_equivalent(2.0) == pytest.approx(0.5 - math.atan(2.0) / math.pi)


def test_scipy_says_the_same() -> None:
    draw = np.random.default_rng(0)
    for units in (2, 3, 8, 20):
        ours, theirs = draw.normal(0.1, 1, (2, units))
        found, known = paired(ours, theirs), stats.ttest_rel(ours, theirs)
        interval = known.confidence_interval(0.95)
        assert (found.t, found.p) == pytest.approx((known.statistic, known.pvalue))
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        sides = [
            stats.ttest_1samp(ours - theirs, popmean=margin, alternative=side).pvalue
            for margin, side in ((-0.7, "greater"), (0.7, "less"))
        ]
        assert found.p_equivalent(0.7) == pytest.approx(max(sides))


def test_equivalence_is_the_90_percent_interval_within_the_margins() -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        ours, theirs = draw.normal(0, 1, (2, 8))
        inner = stats.ttest_rel(ours, theirs).confidence_interval(0.90)
        within = max(-inner.low, inner.high) < 0.9
        assert (paired(ours, theirs).p_equivalent(0.9) < 0.05) == within


def test_a_difference_beyond_the_margin_is_one_beyond_none_at_a_margin_of_0() -> None:
    found = paired(np.arange(8.0) + 3, np.arange(8.0)[::-1] / 2)
    assert found.p_beyond(0) == pytest.approx(found.p)
    other_tail = stats.t.sf((found.value + found.low) / found.error, 7)
    assert found.p_beyond(found.low) == pytest.approx(0.025 + other_tail)
    assert found.p_beyond(1e6) == 1.0


def test_units_that_all_differ_by_the_same_leave_no_doubt() -> None:
    same = paired([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert (same.value, same.t, same.p, same.p_equivalent(0.1)) == (0, 0, 1, 0)
    apart = paired([1.0, 1.0, 1.0], [1.5, 1.5, 1.5])
    assert (apart.value, apart.t, apart.p) == (-0.5, -math.inf, 0)
    assert (apart.p_equivalent(0.4), apart.p_equivalent(0.6)) == (1, 0)


def test_one_unit_tells_of_no_spread() -> None:
    found = paired([1.0], [0.25])
    assert found.value == 0.75
    assert all(map(math.isnan, (found.low, found.high, found.t, found.p)))


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [([1.0], [1.0, 2.0], "pair"), ([], [], "finite"), ([1.0, math.nan], [1.0, 1.0], "finite")],
)
def test_what_does_not_pair_up_is_refused(
    ours: list[float], theirs: list[float], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        paired(ours, theirs)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_is_above_0(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        paired([1.0, 2.0], [0.0, 0.0]).p_equivalent(margin)


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


def test_holm_rejects_what_its_definition_rejects() -> None:
    """Smallest first, p against 0.05 over the hypotheses that are left, up to the first miss."""
    for p_values in itertools.product((0.004, 0.012, 0.02, 0.03, 0.2), repeat=4):
        rejected = set()
        for rank, place in enumerate(sorted(range(4), key=lambda i: p_values[i])):
            if p_values[place] >= 0.05 / (4 - rank):
                break
            rejected.add(place)
        corrected = holm(p_values)
        assert {place for place in range(4) if corrected[place] < 0.05} == rejected


SIMULATIONS, IMAGES = 2000, 500


def seeds_that_matter(units: int, difference: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(S, units) accuracies of two arms of equal merit, in whose units training mattered.

    Accuracy is 0.8 with a standard deviation of 0.06 over training seeds; each unit is then
    judged on 500 images.
    """
    draw = np.random.default_rng(units)
    merit = np.clip(draw.normal(0.8, 0.06, (2, SIMULATIONS, units)), 0, 1)
    ours, theirs = draw.binomial(IMAGES, merit) / IMAGES
    return ours + difference, theirs


def error(rate: float) -> float:
    """Three standard errors of a rate over the simulations."""
    return 3 * math.sqrt(rate * (1 - rate) / SIMULATIONS)


@pytest.mark.parametrize("units", [3, 8])
def test_where_seeds_matter_a_t_test_over_units_errs_in_5_percent(units: int) -> None:
    ours, theirs = seeds_that_matter(units)
    wrong = np.mean([paired(a, b).p < 0.05 for a, b in zip(ours, theirs, strict=True)])
    assert wrong == pytest.approx(0.05, abs=error(0.05))


def bootstrap_error(means: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Standard error that a bootstrap over seeds, then images, ends at: (..., seeds) to (...)."""
    return np.sqrt((means.var(-1) + within.mean(-1)) / means.shape[-1])


def test_the_normal_approximation_over_three_seeds_errs_three_to_four_times_as_often() -> None:
    """What rows' comparisons are tested by: why three seeds settle no claim."""
    draw = np.random.default_rng(0)
    a, b = draw.binomial(1, [[[0.8]], [[0.9]]], (2, 3, 100))
    test = paired_mean(list(a), list(b), resamples=1000)
    expected = bootstrap_error((a - b).mean(-1), (a - b).var(-1) / 100)
    two_sided = math.erfc(abs(test.value) / float(expected) / math.sqrt(2))
    assert math.log(test.p) == pytest.approx(math.log(two_sided), rel=0.1)

    ours, theirs = seeds_that_matter(3)
    # Of a difference of two means of images that pair by their seeds alone.
    within = (ours * (1 - ours) + theirs * (1 - theirs)) / IMAGES
    z = np.abs((ours - theirs).mean(-1)) / bootstrap_error(ours - theirs, within)
    assert 0.16 < np.mean(z > stats.norm.ppf(0.975)) < 0.21


def test_equivalence_is_shown_wrongly_in_at_most_5_percent() -> None:
    margin = 0.1
    ours, theirs = seeds_that_matter(8, difference=margin)
    shown = [paired(a, b).p_equivalent(margin) < 0.05 for a, b in zip(ours, theirs, strict=True)]
    assert np.mean(shown) == pytest.approx(0.05, abs=error(0.05))


def test_equivalence_is_shown_as_often_as_theory_has_it() -> None:
    """Of normal differences: what is left of the margins on either side, over all spreads."""
    units, spread, margin = 8, 1.0, 1.2
    critical, root = stats.t.ppf(0.95, units - 1), math.sqrt(units)

    def shown_at(chi: float) -> float:
        """Probability that the mean lies far enough within, for sd = chi / sqrt(n - 1)."""
        left = root * margin / spread - critical * chi / math.sqrt(units - 1)
        return max(0.0, 2 * stats.norm.cdf(left) - 1) * stats.chi.pdf(chi, units - 1)

    power = integrate.quad(shown_at, 0, 12, limit=100)[0]
    draw = np.random.default_rng(3)
    differences = draw.normal(0, spread, (SIMULATIONS, units))
    shown = np.mean([paired(d, np.zeros(units)).p_equivalent(margin) < 0.05 for d in differences])
    assert 0.7 < power < 0.95
    assert shown == pytest.approx(power, abs=error(power))
