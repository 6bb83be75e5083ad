"""What the reference images look like to an extractor, in memory and in a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppap.evaluation.features import FeatureExtractor, Features, extract

__all__ = [
    "CHUNK",
    "COVERAGE_NEIGHBOURS",
    "NEIGHBOURS",
    "Floats",
    "ReferenceStatistics",
    "Samples",
    "SpatialMoments",
    "as_floats",
    "check_extractor",
    "check_moments",
    "moments",
    "nearest_distances",
    "neighbour_radii",
]

Floats = npt.NDArray[np.float64]
Samples = Tensor | npt.NDArray[Any]

NEIGHBOURS = 3  # k of Kynkaanniemi et al., arXiv 1904.06991, section 3
COVERAGE_NEIGHBOURS = 5  # k of Naeem et al., arXiv 2002.09797, section 3.3
ROUNDING = 1e-6  # of a covariance's trace: what float32 leaves of zero
CHUNK = 1000  # rows of a distance matrix held at once
_FORMAT = "ppap-reference-statistics-1"


@dataclass(frozen=True, eq=False)
class SpatialMoments:
    """Mean (S,) and covariance (S, S), float64, of the reference's spatial features.

    Raises:
        ValueError: if these do not fit together or can be no moments.
    """

    mean: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        size = self.mean.size
        if self.mean.shape != (size,) or self.covariance.shape != (size, size):
            raise ValueError(
                f"expected a mean (S,) and a covariance (S, S) of spatial features, got "
                f"{self.mean.shape} and {self.covariance.shape}"
            )
        check_moments(self.mean, self.covariance)


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What the reference images look like to one extractor.

    Attributes:
        extractor: its name.
        count: number N of reference images, at least 2; None where a file of moments alone does
            not say it.
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased (divided by N - 1).
        features: (N, D) float32, or None, which leaves FID alone computable.
        spatial: of the spatial features, for sFID; or None.

    Raises:
        ValueError: if these do not fit together, or mean and covariance can be none: not finite,
            not symmetric, or negative in some direction.
    """

    extractor: str
    count: int | None
    mean: Floats
    covariance: Floats
    features: Tensor | None = None
    spatial: SpatialMoments | None = None

    def __post_init__(self) -> None:
        size = self.mean.size
        fits = self.mean.shape == (size,) and self.covariance.shape == (size, size)
        fits = fits and self.mean.dtype == self.covariance.dtype == np.float64
        few = self.features is not None if self.count is None else self.count < 2
        if not fits or few or not self.extractor:
            raise ValueError(
                "reference statistics need an extractor's name, 2 images or more, a float64 mean "
                f"(D,) and covariance (D, D); got {self.extractor!r}, {self.count}, "
                f"{self.mean.dtype} {self.mean.shape}, {self.covariance.dtype} "
                f"{self.covariance.shape}; build them with ReferenceStatistics.of"
            )
        if self.features is not None and self.features.shape != (self.count, size):
            shape = tuple(self.features.shape)
            raise ValueError(f"expected features of shape {(self.count, size)}, got {shape}")
        check_moments(self.mean, self.covariance)

    @property
    def radii(self) -> Tensor:
        """(N,) float64, distance of each reference image to its third neighbour.

        Raises:
            ValueError: for fewer than 4 images.
        """
        return self._radii(NEIGHBOURS)

    @property
    def coverage_radii(self) -> Tensor:
        """(N,) float64, distance of each reference image to its fifth neighbour.

        Raises:
            ValueError: for fewer than 6 images.
        """
        return self._radii(COVERAGE_NEIGHBOURS)

    def _radii(self, neighbours: int) -> Tensor:
        found = self._nearest
        if found.shape[1] < neighbours:
            found = nearest_distances(self.matrix(), neighbours)  # says how many are missing
        return found[:, neighbours - 1]

    @cached_property
    def _nearest(self) -> Tensor:
        """(N, 5 or what there is) distances to the nearest others: all radii in one search."""
        matrix = self.matrix()
        return nearest_distances(matrix, min(COVERAGE_NEIGHBOURS, len(matrix) - 1))

    @staticmethod
    def of(extractor: FeatureExtractor, images: Tensor, batch: int = 250) -> ReferenceStatistics:
        """Statistics of (N, C, H, W) images in [-1, 1]; errors as ``extract``."""
        return ReferenceStatistics.from_features(extract(extractor, images, batch))

    @staticmethod
    def from_features(features: Features) -> ReferenceStatistics:
        """Statistics of features ``extract`` gave; ValueError for fewer than 2 images."""
        if len(features) < 2:
            raise ValueError(f"a covariance needs 2 images or more, got {len(features)}")
        matrix, spatial = features.features.float(), None
        mean, covariance = moments(matrix.double())
        if features.spatial is not None:
            spatial = SpatialMoments(*moments(features.spatial.double()))
        count = len(features)
        return ReferenceStatistics(features.extractor, count, mean, covariance, matrix, spatial)

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write a safetensors file.

        Args:
            path: the file, whose folder is made if need be.
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
        if self.spatial is not None:
            tensors["spatial_mean"] = torch.tensor(self.spatial.mean)
            tensors["spatial_covariance"] = torch.tensor(self.spatial.covariance)
        about = {"format": _FORMAT, "extractor": self.extractor, "count": str(self.count)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
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
        matrix, spatial = tensors.get("features"), None
        if "spatial_mean" in tensors:
            kept = tensors["spatial_mean"], tensors["spatial_covariance"]
            spatial = SpatialMoments(kept[0].numpy(), kept[1].numpy())
        return ReferenceStatistics(
            about["extractor"],
            None if about["count"] == str(None) else int(about["count"]),
            tensors["mean"].numpy(),
            tensors["covariance"].numpy(),
            None if matrix is None else matrix.float(),
            spatial,
        )

    def check(self, generated: Samples, least: int = 2) -> Floats:
        """Return (N, D) features as float64; ValueError for NaN, another D or N < least."""
        matrix = as_floats(generated)
        if matrix.ndim != 2 or matrix.shape[1] != self.mean.size or len(matrix) < least:
            raise ValueError(
                f"expected ({least} or more, {self.mean.size}) features, as {self.extractor!r} "
                f"gives, got {matrix.shape}; generate more images or load the right reference"
            )
        if not np.isfinite(matrix).all():
            raise ValueError("features hold NaN or infinity; look for such images first")
        return matrix

    def matrix(self) -> Tensor:
        """(N, D) features as float64; ValueError for a reference that has none."""
        if self.features is None:
            raise ValueError(
                "KID, precision and recall need the reference's features, of which this file has "
                "none; rebuild it with ReferenceStatistics.of, or ask for fid alone"
            )
        return self.features.double()


def as_floats(samples: Samples) -> Floats:
    """A tensor of any type, on any device, or an array as float64."""
    if isinstance(samples, Tensor):
        return samples.detach().cpu().double().numpy()
    return np.asarray(samples, dtype=np.float64)


def check_moments(mean: Floats, covariance: Floats) -> None:
    """Refuse what is no mean and covariance.

    Args:
        mean: (D,).
        covariance: (D, D).

    Raises:
        ValueError: for numbers that are not finite, or a covariance that is not symmetric or not
            positive semidefinite, beyond what rounding to float32 does to one.
    """
    wrong = ""
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        wrong = "must be finite"
    else:
        slack = ROUNDING * (float(np.abs(np.diag(covariance)).sum()) or 1.0)
        if np.abs(covariance - covariance.T).max() > slack:
            wrong = "do not fit together: the covariance is not symmetric"
        else:
            try:
                np.linalg.cholesky(covariance + slack * np.eye(len(covariance)))
            except np.linalg.LinAlgError:
                wrong = "cannot be: the covariance is negative in some direction"
    if wrong:
        raise ValueError(f"reference mean and covariance {wrong}; rebuild or fetch them again")


def moments(matrix: Tensor) -> tuple[Floats, Floats]:
    """Mean (D,) and unbiased covariance (D, D) of an (N, D) float64 matrix, as FID takes them."""
    from torch_fidelity import metric_fid

    found = metric_fid.fid_features_to_statistics(matrix)
    size = matrix.shape[1]
    return found["mu"], found["sigma"].reshape(size, size)


def neighbour_radii(matrix: Tensor) -> Tensor:
    """(N,) distance of each row of an (N, D) matrix to its third neighbour among the others.

    Raises:
        ValueError: for fewer than 4 rows.
    """
    return nearest_distances(matrix, NEIGHBOURS)[:, -1]


def nearest_distances(matrix: Tensor, neighbours: int) -> Tensor:
    """(N, k) distances of each row of an (N, D) matrix to its k nearest others, in order.

    Raises:
        ValueError: for fewer than k + 1 rows.
    """
    if len(matrix) <= neighbours:
        raise ValueError(
            f"distances to {neighbours} neighbours, as precision, recall, density and coverage "
            f"take them, need {neighbours + 1} images or more, got {len(matrix)}"
        )
    count = neighbours + 1  # a point is its own nearest neighbour
    starts = range(0, len(matrix), CHUNK)
    rows = (torch.cdist(matrix[start : start + CHUNK], matrix) for start in starts)
    return torch.cat([row.topk(count, largest=False).values[:, 1:] for row in rows])


def check_extractor(features: Features, reference: ReferenceStatistics) -> None:
    """ValueError unless one extractor gave both the features and the reference."""
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
