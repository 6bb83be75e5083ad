"""How sure a figure is: bootstrap intervals over seeds and samples, and FID without its bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppap.evaluation.features import Features
from ppap.evaluation.metrics import matrix_fid
from ppap.evaluation.reference import (
    Floats,
    ReferenceStatistics,
    Samples,
    as_floats,
    check_extractor,
)

__all__ = [
    "Difference",
    "Interval",
    "bootstrap_fid",
    "bootstrap_mean",
    "fid_corrected",
    "fid_infinity",
    "holm",
    "paired_fid",
    "paired_mean",
]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval, in the figure's own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two figures, its interval and the p-value of no difference.

    Attributes:
        p: two-sided, normal with the bootstrap's standard error; it counts no other comparison
            (see ``holm``).
    """

    p: float


def bootstrap_mean(groups: Sequence[Samples], resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean over several training seeds, each with its own samples, and a percentile interval.

    Hierarchical: seeds are drawn with replacement, then samples within each. One group gives
    sampling noise only; a handful of groups understate the noise between seeds, by
    (G - 1) / G in variance.

    Args:
        groups: one (N,) array per seed, such as 0 or 1 for each image; N may differ.
        resamples: bootstrap replicates.
        seed: of the resampling.

    Returns:
        The mean of the groups' means, with its interval.

    Raises:
        ValueError: for no groups, or a group which is empty, no vector or not finite, or fewer
            than 2 resamples.
    """
    value, replicates = _replicate_means(groups, resamples, seed)
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def bootstrap_fid(
    groups: Sequence[Samples],
    reference: ReferenceStatistics,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Mean FID over several seeds and a recentred hierarchical bootstrap interval.

    A resample repeats images, so its FID carries the 1/N bias a second time and a plain
    percentile interval would lie above the value. The replicates are therefore shifted until
    their mean is the value, which keeps their spread. The interval is thus for the FID which
    N images give on average, not for that of infinitely many (see ``fid_infinity``): compare
    it between models at equal N. The reference counts as fixed.

    Args:
        groups: one (N, D) array of generated features per seed.
        reference: of the same extractor.
        resamples: bootstrap replicates.
        seed: of the resampling.

    Returns:
        The mean of the groups' plain FIDs, with its interval.

    Raises:
        ValueError: for no groups, fewer than 2 images in one, another D, features that are not
            finite, or fewer than 2 resamples.
    """
    arrays = [reference.check(group) for group in groups]
    _check_resamples(resamples)
    if not arrays:
        raise ValueError("expected a group of features for each seed, got none")
    rng = np.random.default_rng(seed)
    value = float(np.mean([matrix_fid(array, reference) for array in arrays]))
    replicates = np.array(
        [
            np.mean([matrix_fid(r, reference) for r in _resample(arrays, rng)])
            for _ in range(resamples)
        ]
    )
    low, high = np.percentile(replicates - replicates.mean() + value, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def fid_infinity(
    features: Features, reference: ReferenceStatistics, points: int = 15, seed: int = 0
) -> float:
    """FID of infinitely many generated images: Chong & Forsyth, arXiv 1911.07023, section 4.

    A line in 1/n is fitted to FIDs of n images, n from N/4 to N, and read at 1/n = 0. Each
    FID is averaged over the disjoint subsets a shuffle allows. The reference keeps its own
    bias. The result is noisier than FID and can be slightly negative.

    Args:
        features: of N generated images, N at least 4 D, below which 1/n is no straight line.
        reference: of the same extractor.
        points: numbers of images n, at least 2.
        seed: of the shuffles.

    Raises:
        ValueError: for too few images or points, or another extractor.
    """
    check_extractor(features, reference)
    matrix = reference.check(features.features, max(8, 4 * reference.mean.size))
    if points < 2:
        raise ValueError(f"a line needs 2 points or more, got {points}")
    rng = np.random.default_rng(seed)
    total = len(matrix)
    sizes = np.linspace(total // 4, total, points).astype(np.int64)
    values = []
    for size in sizes:
        order = rng.permutation(total)[: total // size * size]
        values.append(
            np.mean([matrix_fid(matrix[part], reference) for part in order.reshape(-1, size)])
        )
    return float(np.polynomial.Polynomial.fit(1 / sizes, values, 1)(0.0))


def fid_corrected(features: Features, reference: ReferenceStatistics) -> float:
    """FID without the bias of having N generated images, to first order in 1/N.

    On average, sampling adds tr(S) / N to the squared distance of the means. It also lowers the
    trace of the root of C^1/2 S C^1/2, which is concave: expanded to second order around the true
    covariance, with the variances of a Wishart matrix's entries, by

        1 / (4 (N - 1)) * (sum over i != j of s_i s_j / (s_i + s_j) + sum over i of s_i),

    where s_i are the roots of the eigenvalues of C^1/2 S C^1/2. C is the reference's covariance, S
    that of the images. Twice this, and tr(S) / N, are taken off. The noise stays that of FID;
    unlike :func:`fid_infinity` it takes no shuffles, and half as many images. It is derived for
    Gaussian features; the reference keeps its own bias. The result can be slightly negative.

    Args:
        features: of N generated images, N at least 2 D, below which the expansion does not hold.
        reference: of the same extractor, with or without features.

    Raises:
        ValueError: for too few images, or another extractor.
    """
    check_extractor(features, reference)
    matrix = reference.check(features.features, 2 * reference.mean.size)
    count, covariance = len(matrix), np.atleast_2d(np.cov(matrix, rowvar=False))
    # S C has the eigenvalues of C^1/2 S C^1/2, which is L^T S L for any root C = L L^T.
    values, vectors = np.linalg.eigh(reference.covariance)
    root = vectors * np.sqrt(values.clip(min=0))
    spread = np.sqrt(np.linalg.eigvalsh(root.T @ covariance @ root).clip(min=0))
    spread = spread[spread > 0]
    pairs = spread[:, None] * spread / (spread[:, None] + spread)
    lowered = (pairs.sum() - np.trace(pairs) + spread.sum()) / (4 * (count - 1))
    bias = np.trace(covariance) / count + 2 * lowered
    return matrix_fid(matrix, reference) - float(bias)


def _replicate_means(groups: Sequence[Samples], resamples: int, seed: int) -> tuple[float, Floats]:
    """The mean of the groups' means, and its hierarchical bootstrap replicates."""
    arrays = [as_floats(group) for group in groups]
    _check_resamples(resamples)
    if not arrays or any(a.ndim != 1 or not a.size for a in arrays):
        raise ValueError(f"expected vectors of samples, got {[array.shape for array in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("samples must be finite; leave out images without a figure, and say so")
    rng = np.random.default_rng(seed)
    replicates = [np.mean([r.mean() for r in _resample(arrays, rng)]) for _ in range(resamples)]
    return float(np.mean([array.mean() for array in arrays])), np.array(replicates)


def _check_resamples(resamples: int) -> None:
    """Refuse a single one: it has no spread, and would call any difference certain."""
    if resamples < 2:
        raise ValueError(f"expected resamples >= 2, got {resamples}; 200 and more are usual")


def _resample(groups: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
    return [group[rng.integers(len(group), size=len(group))] for group in chosen]


def paired_mean(
    ours: Sequence[Samples], reference: Sequence[Samples], resamples: int = 1000, seed: int = 0
) -> Difference:
    """Difference of two means over the same seeds and images, tested in pairs.

    Image i of seed s of one side was drawn from the same noise as that of the other: the
    hierarchical bootstrap (as in ``bootstrap_mean``) resamples the pairs' differences.

    Args:
        ours: one (N,) array per seed.
        reference: the same shapes.
        resamples: bootstrap replicates.
        seed: of the resampling.

    Raises:
        ValueError: if the two sides do not pair up, or as ``bootstrap_mean`` does.
    """
    differences = [a - b for a, b in _pairs(ours, reference)]
    value, replicates = _replicate_means(differences, resamples, seed)
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Difference(value, float(low), float(high), _p_value(value, replicates))


def paired_fid(
    ours: Sequence[Samples],
    reference: Sequence[Samples],
    statistics: ReferenceStatistics,
    resamples: int = 200,
    seed: int = 0,
) -> Difference:
    """Difference of two FIDs over the same seeds and images, tested in pairs.

    Each replicate draws the same seeds and images on both sides; replicates are shifted until
    their mean is the value, as in ``bootstrap_fid``.

    Args:
        ours: one (N, D) array of features per seed.
        reference: the same shapes.
        statistics: of the reference images.
        resamples: bootstrap replicates.
        seed: of the resampling.

    Raises:
        ValueError: if the two sides do not pair up, or as ``bootstrap_fid`` does.
    """
    pairs = _pairs([statistics.check(a) for a in ours], [statistics.check(b) for b in reference])
    _check_resamples(resamples)

    def difference(a: Floats, b: Floats) -> float:
        return matrix_fid(a, statistics) - matrix_fid(b, statistics)

    value = float(np.mean([difference(a, b) for a, b in pairs]))
    rng = np.random.default_rng(seed)
    replicates = np.empty(resamples)
    for place in range(resamples):
        drawn = []
        for group in rng.integers(len(pairs), size=len(pairs)):
            a, b = pairs[group]
            rows = rng.integers(len(a), size=len(a))
            drawn.append(difference(a[rows], b[rows]))
        replicates[place] = np.mean(drawn)
    replicates += value - replicates.mean()
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Difference(value, float(low), float(high), _p_value(value, replicates))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: Holm, Scand. J. Statist. 6 (1979), step-down.

    Raises:
        ValueError: for a p-value outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    corrected = [0.0] * len(p_values)
    floor = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = floor
    return corrected


def _pairs(ours: Sequence[Samples], reference: Sequence[Samples]) -> list[tuple[Floats, Floats]]:
    left = [as_floats(group) for group in ours]
    right = [as_floats(group) for group in reference]
    shapes = [a.shape for a in left], [b.shape for b in right]
    if not left or shapes[0] != shapes[1]:
        raise ValueError(f"paired samples need the same seeds and images, got {shapes}")
    return list(zip(left, right, strict=True))


def _p_value(value: float, replicates: Floats) -> float:
    """Two-sided, by the bootstrap's standard error: tails finer than the replicates resolve."""
    error = float(replicates.std())
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value) / error / math.sqrt(2))
