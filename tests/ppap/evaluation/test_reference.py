"""Reference statistics: through the file and back, and refused where damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ppap.evaluation.metrics import fid, image_quality
from ppap.evaluation.reference import ReferenceStatistics, SpatialMoments
from tests.ppap.statistics import normal, reference


@pytest.mark.parametrize("half", [False, True])
def test_statistics_survive_the_file(tmp_path: Path, half: bool) -> None:
    real, path = reference(), tmp_path / "of" / "mine" / "reference.safetensors"
    real.save(path, half=half)
    read = ReferenceStatistics.load(path)
    assert (read.extractor, read.count) == (real.extractor, real.count)
    assert np.array_equal(read.mean, real.mean)
    assert np.array_equal(read.covariance, real.covariance)
    assert read.features is not None
    assert real.features is not None
    tolerance = 1e-3 if half else 0
    torch.testing.assert_close(read.features, real.features, rtol=tolerance, atol=tolerance)


def test_half_precision_halves_the_features(tmp_path: Path) -> None:
    full, half = tmp_path / "full", tmp_path / "half"
    reference(2000).save(full)
    reference(2000).save(half, half=True)
    assert half.stat().st_size < 0.55 * full.stat().st_size


def test_without_features_fid_alone_can_be_had(tmp_path: Path) -> None:
    real, path = replace(reference(), features=None), tmp_path / "slim.safetensors"
    real.save(path)
    read = ReferenceStatistics.load(path)
    assert read.features is None
    assert fid(normal(100), read) == fid(normal(100), reference())
    with pytest.raises(ValueError, match="need the reference's features"):
        image_quality(normal(100), read)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "foreign"])
def test_a_damaged_file_is_refused_with_the_mend(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "reference.safetensors"
    if damage == "foreign":
        save_file({"mean": torch.zeros(3)}, path)
    elif damage != "missing":
        reference().save(path)
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data if damage == "flipped" else data[:-64])
    with pytest.raises(ValueError, match=r"rebuild it with ReferenceStatistics\.of"):
        ReferenceStatistics.load(path)


def test_features_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    real = ReferenceStatistics.from_features(normal(10, shift=1e5))
    with pytest.raises(ValueError, match="half=False"):
        real.save(tmp_path / "reference", half=True)


@pytest.mark.parametrize(
    ("covariance", "reason"),
    [
        (-np.eye(8), "negative in some direction"),
        (np.diag([1.0] * 7 + [-0.01]), "negative in some direction"),
        (np.full((8, 8), 0.5) + 0.25 * np.eye(8) - np.ones((8, 8)), "negative in some direction"),
        (np.diag([1.0] * 7 + [np.inf]), "must be finite"),
        (np.triu(np.ones((8, 8))), "not symmetric"),
    ],
)
def test_moments_that_none_can_be_are_refused(covariance: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(reference(), covariance=covariance)
    with pytest.raises(ValueError, match=reason):
        SpatialMoments(np.zeros(8), covariance)


def test_what_rounding_does_to_a_covariance_is_no_fault() -> None:
    for few in (normal(3), normal(200)):
        own = ReferenceStatistics.from_features(few)
        rounded = own.covariance.astype(np.float32).astype(np.float64)
        assert fid(few, replace(own, covariance=rounded)) == pytest.approx(0, abs=1e-3)
    assert not replace(reference(), covariance=np.zeros((8, 8))).covariance.any()


def test_a_covariance_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="2 images or more"):
        ReferenceStatistics.from_features(normal(1))
