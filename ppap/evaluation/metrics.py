"""Quality of generated images: FID, KID, Inception Score, precision, recall, density, coverage.

Every metric is computed in float64 from features extracted once
(``ppap.evaluation.features.extract``), by torch-fidelity wherever its functions are quick enough,
and with the same figures as ``torch_fidelity.calculate_metrics`` gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppap.evaluation.features import Features
from ppap.evaluation.reference import (
    CHUNK,
    COVERAGE_NEIGHBOURS,
    NEIGHBOURS,
    Floats,
    ReferenceStatistics,
    Samples,
    check_extractor,
    moments,
    neighbour_radii,
)
from ppap.files.images import NonFiniteError, check_finite
from ppap.tasks.checks import checked_labels

__all__ = [
    "Quality",
    "correct",
    "density_coverage",
    "fid",
    "frechet_distance",
    "image_quality",
    "inception_score",
    "matrix_fid",
    "precision_recall",
]

INCEPTION_SPLIT = 5000
_KID_SEED = 2020  # torch-fidelity's own default


@dataclass(frozen=True)
class Quality:
    """Figures of merit; FID, KID and sFID are better lower, the others higher.

    Attributes:
        fid: Frechet distance, arXiv 1706.08500; biased upwards by about 1/N.
        kid: squared polynomial-kernel MMD, arXiv 1801.01401; unbiased, can be negative.
        inception_score: see :func:`inception_score`; between 1 and the number of classes.
        precision: share of generated images inside the reference manifold, [0, 1].
        recall: share of reference images inside the generated manifold, [0, 1].
        sfid: FID of spatial features, arXiv 2103.03841; None where there are none.
    """

    fid: float
    kid: float
    inception_score: float
    precision: float
    recall: float
    sfid: float | None = None


def image_quality(
    features: Features,
    reference: ReferenceStatistics,
    kid_subsets: int = 10,
    kid_subset_size: int = 1000,
) -> Quality:
    """Every figure of merit of generated images; the same input gives the same output.

    Args:
        features: of N generated images, from ``extract``; at least 4.
        reference: of the same extractor, with features.
        kid_subsets: random subsets KID is averaged over, drawn with a fixed seed.
        kid_subset_size: images in each, lowered to the number there are.

    Raises:
        ValueError: for too few images, another extractor, or a reference without features.
    """
    from torch_fidelity import metric_kid

    check_extractor(features, reference)
    if kid_subsets < 1 or kid_subset_size < 2:
        raise ValueError(f"KID needs 1 subset of 2, got {kid_subsets} of {kid_subset_size}")
    generated = torch.from_numpy(reference.check(features.features, NEIGHBOURS + 1))
    real = reference.matrix()
    precision, recall = precision_recall(generated, reference)
    kid = metric_kid.kid_features_to_metric(
        generated,
        real,
        kid_subsets=kid_subsets,
        kid_subset_size=min(kid_subset_size, len(generated), len(real)),
        rng_seed=_KID_SEED,
        verbose=False,
    )
    sfid = None
    if features.spatial is not None and reference.spatial is not None:
        ours, theirs = features.spatial.double().numpy(), reference.spatial
        sfid = _distance(ours, theirs.mean, theirs.covariance)
    return Quality(
        fid=matrix_fid(generated.numpy(), reference),
        kid=float(kid[metric_kid.KEY_METRIC_KID_MEAN]),
        inception_score=inception_score(features.logits),
        precision=precision,
        recall=recall,
        sfid=sfid,
    )


def fid(features: Features, reference: ReferenceStatistics) -> float:
    """FID alone, for a reference with or without features; errors as ``image_quality``."""
    check_extractor(features, reference)
    return matrix_fid(reference.check(features.features), reference)


def inception_score(logits: Tensor) -> float:
    """Inception Score, arXiv 1606.03498, as OpenAI's evaluator takes it.

    That is the mean over runs of 5000 images, of which the last may be shorter.

    Args:
        logits: (N, K), unnormalised class scores.

    Raises:
        NonFiniteError: for logits that are NaN or infinite.
        ValueError: for no logits, or another shape.
    """
    from torch_fidelity import metric_isc

    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"expected (N, K) logits, at least one row, got {tuple(logits.shape)}")
    check_finite(logits, "the logits")
    scores = [
        metric_isc.isc_features_to_metric(part, splits=1, shuffle=False)
        for part in torch.split(logits.cpu(), INCEPTION_SPLIT)
    ]
    return float(np.mean([score[metric_isc.KEY_METRIC_ISC_MEAN] for score in scores]))


def frechet_distance(mean_a: Floats, cov_a: Floats, mean_b: Floats, cov_b: Floats) -> float:
    """Squared Frechet distance of two Gaussians, arXiv 1706.08500, equation 6.

    Args:
        mean_a: (D,) float64.
        cov_a: (D, D) float64.
        mean_b: (D,) float64.
        cov_b: (D, D) float64.

    Raises:
        ValueError: if the shapes do not match.
    """
    from torch_fidelity import metric_fid

    shapes = [array.shape for array in (mean_a, cov_a, mean_b, cov_b)]
    size = mean_a.size
    if shapes != [(size,), (size, size)] * 2:
        raise ValueError(f"expected means (D,) and covariances (D, D) of one D, got {shapes}")
    a, b = {"mu": mean_a, "sigma": cov_a}, {"mu": mean_b, "sigma": cov_b}
    result = metric_fid.fid_statistics_to_metric(a, b, verbose=False)
    return float(result[metric_fid.KEY_METRIC_FID])


def precision_recall(generated: Samples, reference: ReferenceStatistics) -> tuple[float, float]:
    """Improved precision and recall, arXiv 1904.06991, equations 1 and 2, with k = 3.

    Equal to torch-fidelity's, but the reference's radii are computed once and kept, and by
    partial selection. For 1000 images against 10000 the selection step is 20 times faster, and
    all of it more than 6 times.

    Args:
        generated: (N, D) features, N > 3.
        reference: with features.

    Raises:
        ValueError: for too few images, another D, or a reference without features.
    """
    ours = torch.from_numpy(reference.check(generated, NEIGHBOURS + 1))
    real, ours_radii = reference.matrix(), neighbour_radii(ours)
    inside_real = 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(ours), CHUNK):
        part = slice(start, start + CHUNK)
        distances = torch.cdist(ours[part], real)
        inside_real += int((distances <= reference.radii).any(1).sum())
        covered |= (distances <= ours_radii[part, None]).any(0)
    return inside_real / len(ours), covered.double().mean().item()


def density_coverage(generated: Samples, reference: ReferenceStatistics) -> tuple[float, float]:
    """Density and coverage, arXiv 2002.09797, equations 4 and 6, with k = 5.

    Both look at balls around the reference images, each as large as the distance to its fifth
    neighbour. Density is how many balls a generated image lies in, over k: about 1 for images
    like the reference, more for such that crowd where the reference is dense. Coverage is the
    share of balls that hold a generated image. It grows with M, since few images cannot reach
    every ball: compare it at equal M.

    Args:
        generated: (M, D) features.
        reference: with features, of 6 images or more.

    Raises:
        ValueError: for no images, another D, or a reference without features or too small.
    """
    ours = torch.from_numpy(reference.check(generated, 1))
    real, radii = reference.matrix(), reference.coverage_radii
    inside = 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for part in torch.split(ours, CHUNK):
        held = torch.cdist(part, real) <= radii
        inside += int(held.sum())
        covered |= held.any(0)
    return inside / (COVERAGE_NEIGHBOURS * len(ours)), covered.double().mean().item()


def correct(logits: Tensor, labels: Tensor) -> Floats:
    """Whether the top class of (N, K) logits is the (N,) label: (N,) float64, 0 or 1.

    Raises:
        NonFiniteError: for logits that are NaN.
        ValueError: if the shapes do not match, or for a label that is none of the K classes, as
            those of a classifier that counts its classes otherwise.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected (N, K) logits and (N,) labels, got {shapes}")
    if logits.isnan().any():  # which argmax takes for the largest
        row = int(logits.isnan().any(1).nonzero()[0])
        raise NonFiniteError(f"the logits of row {row} hold NaN, of which no class is the top one")
    known = checked_labels(labels.cpu(), labels.shape, logits.shape[1])
    same: Floats = (logits.argmax(1).cpu() == known).double().numpy()
    return same


def matrix_fid(matrix: Floats, reference: ReferenceStatistics) -> float:
    """FID of an (N, D) matrix that ``reference.check`` passed, of an extractor known to match."""
    return _distance(matrix, reference.mean, reference.covariance)


def _distance(matrix: Floats, mean: Floats, covariance: Floats) -> float:
    """Frechet distance of (N, D) samples to a Gaussian.

    With X the centred samples over sqrt(N - 1), X^T X C and X C X^T have the same positive
    eigenvalues, whose roots are summed: of fewer samples than dimensions the second is smaller.
    """
    if len(matrix) >= matrix.shape[1]:
        return frechet_distance(*moments(torch.from_numpy(matrix)), mean, covariance)
    centre = matrix.mean(0)
    scaled = (matrix - centre) / np.sqrt(len(matrix) - 1)
    roots = np.sqrt(np.linalg.eigvalsh(scaled @ covariance @ scaled.T).clip(min=0))
    spread = np.square(scaled).sum() + np.trace(covariance) - 2 * roots.sum()
    return float(np.square(centre - mean).sum() + spread)
