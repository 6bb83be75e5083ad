"""Tests over units: is one arm better than another, or are they as good as equal?

A *unit* is what was repeated independently: a training seed, or a block of sampling seeds where
nothing is trained. The images of a unit share its training, so that they are no repetitions: a
test that counts them finds differences where there are none. Both arms have the same units, drawn
from the same sampling seeds, and are compared unit by unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

__all__ = ["Mean", "Paired", "holm", "mean", "mean_if_measured", "paired"]

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over units with its 95 % t interval.

    Attributes:
        value: the mean.
        low: lower end of the interval; NaN for fewer than two units.
        high: upper end.
        units: how many there are.
        error: standard error of the mean; NaN for fewer than two units.
    """

    value: float
    low: float
    high: float
    units: int
    error: float


@dataclass(frozen=True)
class Paired(Mean):
    """The mean difference of two arms, ours less theirs, over units.

    Attributes:
        t: the difference in standard errors; infinite if every unit differs by the same.
        p: two-sided, of no difference: Student's t with one degree of freedom less than units.
    """

    t: float
    p: float

    def p_equivalent(self, margin: float) -> float:
        """P-value of a difference of the margin or more, either way.

        Two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987): both
        "difference <= -margin" and "difference >= margin" must be rejected, so that the larger
        of the two p-values counts. It is below 0.05 where the 90 % interval lies within the
        margins.

        Args:
            margin: the smallest difference that matters, above 0, in the unit of the values.
        """
        if not margin > 0:
            raise ValueError(f"a margin is above 0, got {margin}")
        return max(
            _upper_tail(self.value + margin, self.error, self.units - 1),
            _upper_tail(margin - self.value, self.error, self.units - 1),
        )

    def p_beyond(self, margin: float) -> float:
        """P-value of a difference within the margins: below 0.05 it is larger than they are.

        Two-sided; of a margin of 0 it is :attr:`p`.

        Args:
            margin: not below 0, in the unit of the values.
        """
        if not margin >= 0:
            raise ValueError(f"a margin is not below 0, got {margin}")
        tails = (abs(self.value) + side * margin for side in (-1, 1))
        return min(1.0, sum(_upper_tail(tail, self.error, self.units - 1) for tail in tails))


def mean(values: Sequence[float] | npt.NDArray[np.float64]) -> Mean:
    """Mean over units with its t interval.

    Args:
        values: one of each unit.

    Raises:
        ValueError: for no values, or some that are not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"expected a finite value of each unit, got {values!r}")
    units, value = found.size, float(found.mean())
    if units == 1:
        return Mean(value, math.nan, math.nan, 1, math.nan)
    error = float(found.std(ddof=1)) / math.sqrt(units)
    reach = float(stdtrit(units - 1, (1 + LEVEL) / 2)) * error
    return Mean(value, value - reach, value + reach, units, error)


def mean_if_measured(values: Iterable[float]) -> Mean:
    """As :func:`mean`; NaN throughout for no values, or where a unit was not measured (NaN)."""
    found = list(values)
    if not found or any(map(math.isnan, found)):
        return Mean(math.nan, math.nan, math.nan, 0, math.nan)
    return mean(found)


def paired(
    ours: Sequence[float] | npt.NDArray[np.float64],
    theirs: Sequence[float] | npt.NDArray[np.float64],
) -> Paired:
    """Paired t-test over units.

    Args:
        ours: one value of each unit.
        theirs: of the same units, in the same order.

    Returns:
        The mean difference, its 95 % interval, t and p; of one unit all but the first are NaN.

    Raises:
        ValueError: if the two do not pair up, or hold what is not finite.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (ours, theirs))
    if left.shape != right.shape:
        raise ValueError(f"paired units: expected as many on both sides, got {ours!r}, {theirs!r}")
    found = mean(left - right)
    if found.units == 1:
        return Paired(**vars(found), t=math.nan, p=math.nan)
    p = 2 * _upper_tail(abs(found.value), found.error, found.units - 1)
    if found.error:
        t = found.value / found.error
    else:  # every unit differs by the same
        t = math.copysign(math.inf, found.value) if found.value else 0.0
    return Paired(**vars(found), t=t, p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: Holm, Scand. J. Statist. 6 (1979), step-down.

    Raises:
        ValueError: for a p-value outside [0, 1].
    """
    found = np.asarray(p_values, dtype=np.float64)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    order = np.argsort(found, kind="stable")
    steps = found[order] * np.arange(found.size, 0, -1)
    corrected = np.empty_like(found)
    corrected[order] = np.maximum.accumulate(np.minimum(steps, 1.0))
    return [float(p) for p in corrected]


def _upper_tail(value: float, error: float, freedom: int) -> float:
    """P(T >= value / error); of no error at all, a half where the value is 0."""
    if error:
        return float(stdtr(freedom, -value / error))
    return 0.5 if value == 0 else float(value < 0)
