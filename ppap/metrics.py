"""Quality of generated images: FID, KID, Inception Score, precision and recall, with intervals.

Features are extracted once (``extract``) and every metric is computed from them in float64,
by torch-fidelity wherever its functions are quick enough; ``register_extractor`` lends the
same extractor to ``torch_fidelity.calculate_metrics``, which then gives the same figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch_fidelity
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity import metric_fid, metric_isc, metric_kid
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

__all__ = [
    "FeatureExtractor",
    "Features",
    "Interval",
    "Quality",
    "ReferenceStatistics",
    "bootstrap_fid",
    "bootstrap_mean",
    "correct",
    "extract",
    "fid",
    "fid_infinity",
    "frechet_distance",
    "from_uint8",
    "image_quality",
    "precision_recall",
    "register_extractor",
]

Floats = npt.NDArray[np.float64]
Samples = Tensor | npt.NDArray[Any]

NEIGHBOURS = 3  # k of Kynkaanniemi et al., arXiv 1904.06991, section 3
_CHUNK = 1000  # rows of a distance matrix held at once
_KID_SEED = 2020  # torch-fidelity's own default
_FORMAT = "ppap-reference-statistics-1"


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor sees in N images.

    Attributes:
        features: (N, D) float, the layer FID, KID, precision and recall compare.
        logits: (N, K) float, unnormalised class scores, for the Inception Score.
        extractor: name of the extractor; ``extract`` writes it.

    Raises:
        ValueError: unless both are finite matrices of as many rows.
    """

    features: Tensor
    logits: Tensor
    extractor: str = ""

    def __post_init__(self) -> None:
        shapes = f"features {tuple(self.features.shape)} and logits {tuple(self.logits.shape)}"
        if self.features.ndim != 2 or self.logits.ndim != 2 or len(self.features) != len(self):
            raise ValueError(f"expected (N, D) features and (N, K) logits, got {shapes}")
        if not (self.features.isfinite().all() and self.logits.isfinite().all()):
            raise ValueError(f"{shapes} hold NaN or infinity; look for such images first")

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: slice | Tensor) -> Features:
        """Select images by a slice, an index or a mask."""
        return Features(self.features[index], self.logits[index], self.extractor)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join parts in order; ValueError for none, or for parts of several extractors."""
        names = {part.extractor for part in parts}
        if len(names) != 1:
            raise ValueError(f"can join features of one extractor, got {sorted(names)}")
        features = torch.cat([part.features for part in parts])
        return Features(features, torch.cat([part.logits for part in parts]), names.pop())


class FeatureExtractor(Protocol):
    """The seam: any network which turns images into features and class scores."""

    @property
    def name(self) -> str:
        """Unique name, a new one for new weights, e.g. ``"evaluator-64"``."""

    def __call__(self, images: Tensor) -> Features:
        """Features of (N, C, H, W) images in [-1, 1], each image on its own."""


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 pixels of any shape, 0 to 255, to float32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}")
    return images.float() / 127.5 - 1


def extract(extractor: FeatureExtractor, images: Tensor, batch: int = 250) -> Features:
    """Extract features in batches, without gradients.

    Args:
        extractor: the network; it sees the images on their own device.
        images: (N, C, H, W) float in [-1, 1].
        batch: images at a time; it sets memory, not the result.

    Returns:
        Features of the N images on the CPU, marked with the extractor's name.

    Raises:
        ValueError: for no images, another shape, another type or another range.
    """
    if images.ndim != 4 or not len(images) or not images.is_floating_point() or batch < 1:
        raise ValueError(
            f"expected float (N, C, H, W) images and batch >= 1, got {images.dtype} "
            f"{tuple(images.shape)} and {batch}; from_uint8 converts stored pixels"
        )
    if not images.abs().amax() <= 1.001:
        raise ValueError("images leave [-1, 1]; rescale or clamp them before measuring")
    parts: list[Features] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            seen = extractor(images[start : start + batch])
            parts.append(Features(seen.features.cpu(), seen.logits.cpu(), extractor.name))
    return Features.cat(parts)


def register_extractor(extractor: FeatureExtractor) -> str:
    """Make an extractor known to ``torch_fidelity.calculate_metrics(feature_extractor=name)``.

    There it is fed uint8 images, and gives float64 so that torch-fidelity does not round in
    float32. ``cuda=`` must name the device the extractor lives on.

    Returns:
        The extractor's name.

    Raises:
        ValueError: if the name is taken, or is none torch-fidelity accepts.
    """
    if extractor.name in FEATURE_EXTRACTORS_REGISTRY:
        raise ValueError(f"torch-fidelity already has {extractor.name!r}; take another name")

    class Registered(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: Sequence[str], **_options: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            seen = extractor(from_uint8(images))
            return tuple(getattr(seen, layer).double() for layer in self.features_list)

    torch_fidelity.register_feature_extractor(extractor.name, Registered)
    return extractor.name


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What the reference images look like to one extractor.

    Attributes:
        extractor: its name.
        count: number N of reference images, at least 2.
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased (divided by N - 1).
        features: (N, D) float32, or None, which leaves FID alone computable.

    Raises:
        ValueError: if these do not fit together or are not finite.
    """

    extractor: str
    count: int
    mean: Floats
    covariance: Floats
    features: Tensor | None = None

    def __post_init__(self) -> None:
        size = self.mean.size
        fits = self.mean.shape == (size,) and self.covariance.shape == (size, size)
        fits = fits and self.mean.dtype == self.covariance.dtype == np.float64
        if not fits or self.count < 2 or not self.extractor:
            raise ValueError(
                "reference statistics need an extractor's name, 2 images or more, a float64 mean "
                f"(D,) and covariance (D, D); got {self.extractor!r}, {self.count}, "
                f"{self.mean.dtype} {self.mean.shape}, {self.covariance.dtype} "
                f"{self.covariance.shape}; build them with ReferenceStatistics.of"
            )
        if self.features is not None and self.features.shape != (self.count, size):
            shape = tuple(self.features.shape)
            raise ValueError(f"expected features of shape {(self.count, size)}, got {shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("reference mean and covariance must be finite; rebuild them")

    @cached_property
    def radii(self) -> Tensor:
        """(N,) float64, distance of each reference image to its third neighbour."""
        return _radii(self._matrix())

    @staticmethod
    def of(extractor: FeatureExtractor, images: Tensor, batch: int = 250) -> ReferenceStatistics:
        """Statistics of (N, C, H, W) images in [-1, 1]; errors as ``extract``."""
        return ReferenceStatistics.from_features(extract(extractor, images, batch))

    @staticmethod
    def from_features(features: Features) -> ReferenceStatistics:
        """Statistics of features ``extract`` gave; ValueError for fewer than 2 images."""
        if len(features) < 2:
            raise ValueError(f"a covariance needs 2 images or more, got {len(features)}")
        matrix = features.features.float()
        mean, covariance = _moments(matrix.double())
        return ReferenceStatistics(features.extractor, len(features), mean, covariance, matrix)

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write a safetensors file.

        Args:
            path: the file.
            half: round the features (mean and covariance never) to float16, which halves the
                file and moves KID, precision and recall by about one part in a thousand.

        Raises:
            ValueError: if a feature is beyond float16.
        """
        tensors = {"mean": torch.tensor(self.mean), "covariance": torch.tensor(self.covariance)}
        if self.features is not None:
            stored = self.features.half() if half else self.features.float()
            if not stored.isfinite().all():
                raise ValueError("features overflow float16; save them with half=False")
            tensors["features"] = stored.contiguous()
        about = {"format": _FORMAT, "extractor": self.extractor, "count": str(self.count)}
        save_file(tensors, path, about | {"sha256": _digest(about, tensors)})

    @staticmethod
    def load(path: str | Path) -> ReferenceStatistics:
        """Read what ``save`` wrote; features come back as float32.

        Raises:
            ValueError: if the file is missing, of another format, or damaged.
        """
        mend = "rebuild it with ReferenceStatistics.of(extractor, images).save(path)"
        try:
            with safe_open(str(path), "pt") as file:
                about: dict[str, str] = file.metadata() or {}
                names: list[str] = file.keys()
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {path} ({error}); {mend}") from error
        if about.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected {_FORMAT}, got {about.get('format')}; {mend}")
        if about.pop("sha256", None) != _digest(about, tensors):
            raise ValueError(f"{path}: contents do not match their checksum; {mend}")
        matrix = tensors.get("features")
        return ReferenceStatistics(
            about["extractor"],
            int(about["count"]),
            tensors["mean"].numpy(),
            tensors["covariance"].numpy(),
            None if matrix is None else matrix.float(),
        )

    def check(self, generated: Samples, least: int = 2) -> Floats:
        """Return (N, D) features as float64; ValueError for NaN, another D or N < least."""
        if isinstance(generated, Tensor):
            generated = generated.detach().cpu().numpy()
        matrix = np.asarray(generated, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != self.mean.size or len(matrix) < least:
            raise ValueError(
                f"expected ({least} or more, {self.mean.size}) features, as {self.extractor!r} "
                f"gives, got {matrix.shape}; generate more images or load the right reference"
            )
        if not np.isfinite(matrix).all():
            raise ValueError("features hold NaN or infinity; look for such images first")
        return matrix

    def _matrix(self) -> Tensor:
        if self.features is None:
            raise ValueError(
                "KID, precision and recall need the reference's features, of which this file has "
                "none; rebuild it with ReferenceStatistics.of, or ask for fid alone"
            )
        return self.features.double()


@dataclass(frozen=True)
class Quality:
    """Five figures of merit; FID and KID are better lower, the others higher.

    Attributes:
        fid: Frechet distance, arXiv 1706.08500; biased upwards by about 1/N.
        kid: squared polynomial-kernel MMD, arXiv 1801.01401; unbiased, can be negative.
        inception_score: arXiv 1606.03498, one split; between 1 and the number of classes.
        precision: share of generated images inside the reference manifold, [0, 1].
        recall: share of reference images inside the generated manifold, [0, 1].
    """

    fid: float
    kid: float
    inception_score: float
    precision: float
    recall: float


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
    _same_extractor(features, reference)
    if kid_subsets < 1 or kid_subset_size < 2:
        raise ValueError(f"KID needs 1 subset of 2, got {kid_subsets} of {kid_subset_size}")
    generated = torch.from_numpy(reference.check(features.features, NEIGHBOURS + 1))
    real = reference._matrix()
    precision, recall = precision_recall(generated, reference)
    kid = metric_kid.kid_features_to_metric(
        generated,
        real,
        kid_subsets=kid_subsets,
        kid_subset_size=min(kid_subset_size, len(generated), len(real)),
        rng_seed=_KID_SEED,
        verbose=False,
    )
    score = metric_isc.isc_features_to_metric(features.logits.cpu(), splits=1, shuffle=False)
    return Quality(
        fid=_fid(generated.numpy(), reference),
        kid=float(kid[metric_kid.KEY_METRIC_KID_MEAN]),
        inception_score=float(score[metric_isc.KEY_METRIC_ISC_MEAN]),
        precision=precision,
        recall=recall,
    )


def fid(features: Features, reference: ReferenceStatistics) -> float:
    """FID alone, for a reference with or without features; errors as ``image_quality``."""
    _same_extractor(features, reference)
    return _fid(reference.check(features.features), reference)


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
    partial selection: 20 times faster for 1000 images against 10000.

    Args:
        generated: (N, D) features, N > 3.
        reference: with features.

    Raises:
        ValueError: for too few images, another D, or a reference without features.
    """
    ours = torch.from_numpy(reference.check(generated, NEIGHBOURS + 1))
    real, ours_radii = reference._matrix(), _radii(ours)
    inside_real = 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(ours), _CHUNK):
        part = slice(start, start + _CHUNK)
        distances = torch.cdist(ours[part], real)
        inside_real += int((distances <= reference.radii).any(1).sum())
        covered |= (distances <= ours_radii[part, None]).any(0)
    return inside_real / len(ours), covered.double().mean().item()


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
    value = float(np.mean([_fid(array, reference) for array in arrays]))
    replicates = np.array(
        [np.mean([_fid(r, reference) for r in _resample(arrays, rng)]) for _ in range(resamples)]
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
    _same_extractor(features, reference)
    matrix = reference.check(features.features, max(8, 4 * reference.mean.size))
    if points < 2:
        raise ValueError(f"a line needs 2 points or more, got {points}")
    rng = np.random.default_rng(seed)
    total = len(matrix)
    sizes = np.linspace(total // 4, total, points).astype(np.int64)
    values = []
    for size in sizes:
        order = rng.permutation(total)[: total // size * size]
        values.append(np.mean([_fid(matrix[part], reference) for part in order.reshape(-1, size)]))
    return float(np.polynomial.Polynomial.fit(1 / sizes, values, 1)(0.0))


def correct(logits: Tensor, labels: Tensor) -> Floats:
    """Whether the top class of (N, K) logits is the (N,) label: (N,) float64, 0 or 1.

    Raises:
        ValueError: if the shapes do not match.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected (N, K) logits and (N,) labels, got {shapes}")
    hits: Floats = (logits.argmax(1).cpu() == labels.cpu()).double().numpy()
    return hits


def _fid(matrix: Floats, reference: ReferenceStatistics) -> float:
    moments = _moments(torch.from_numpy(matrix))
    return frechet_distance(*moments, reference.mean, reference.covariance)


def _moments(matrix: Tensor) -> tuple[Floats, Floats]:
    found = metric_fid.fid_features_to_statistics(matrix)
    size = matrix.shape[1]
    return found["mu"], found["sigma"].reshape(size, size)


def _radii(matrix: Tensor) -> Tensor:
    count = NEIGHBOURS + 1  # a point is its own nearest neighbour
    if len(matrix) < count:
        raise ValueError(f"precision and recall need {count} images or more, got {len(matrix)}")
    starts = range(0, len(matrix), _CHUNK)
    rows = (torch.cdist(matrix[start : start + _CHUNK], matrix) for start in starts)
    return torch.cat([row.topk(count, largest=False).values[:, -1] for row in rows])


def _resample(groups: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
    return [group[rng.integers(len(group), size=len(group))] for group in chosen]


def _same_extractor(features: Features, reference: ReferenceStatistics) -> None:
    if features.extractor != reference.extractor:
        raise ValueError(
            f"reference statistics are of extractor {reference.extractor!r}, the features of "
            f"{features.extractor!r}; use one extractor, through extract, for both"
        )


def _digest(about: dict[str, str], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
