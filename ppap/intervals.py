"""How sure a figure is: bootstrap intervals over seeds and samples, and FID without its bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppap.features import Features
from ppap.metrics import matrix_fid
from ppap.reference import Floats, ReferenceStatistics, Samples, check_extractor

__all__ = ["Interval", "bootstrap_fid", "bootstrap_mean", "fid_infinity"]


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval, in the figure's own unit."""

    value: float
    low: float
    high: float


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
        ValueError: for no groups, or a group which is empty or no vector.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or resamples < 1 or any(a.ndim != 1 or not a.size for a in arrays):
        shapes = [array.shape for array in arrays]
        raise ValueError(f"expected resamples >= 1 and vectors of samples, got {shapes}")
    rng = np.random.default_rng(seed)
    replicates = [np.mean([r.mean() for r in _resample(arrays, rng)]) for _ in range(resamples)]
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Interval(float(np.mean([array.mean() for array in arrays])), float(low), float(high))


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
        ValueError: for no groups, fewer than 2 images in one, or another D.
    """
    arrays = [reference.check(group) for group in groups]
    if not arrays or resamples < 1:
        raise ValueError(f"expected groups and resamples >= 1, got {len(arrays)} and {resamples}")
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


def _resample(groups: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
    return [group[rng.integers(len(group), size=len(group))] for group in chosen]
