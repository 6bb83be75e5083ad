"""OpenAI's evaluation protocol, on seeded weights of the published architecture."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ablations.settings.rehearsal import seeded_inception
from ppap.evaluation.features import Features, extract
from ppap.evaluation.inception import InceptionExtractor, load_openai_reference
from ppap.evaluation.metrics import fid, image_quality
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.checkpoints import CheckpointError
from ppap.files.images import from_uint8

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 40, 40, 3), dtype=np.uint8)
IMAGES = from_uint8(torch.from_numpy(PIXELS).movedim(-1, 1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    seeded_inception(path)
    return path


@pytest.fixture(scope="module")
def seen(weights: Path) -> Features:
    return extract(InceptionExtractor(weights), IMAGES, 5)


def test_features_are_those_of_torch_fidelity(weights: Path, seen: Features) -> None:
    network = FeatureExtractorInceptionV3(
        "other", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    features, logits = network(torch.from_numpy(PIXELS).movedim(-1, 1))
    torch.testing.assert_close(seen.features, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.logits, logits, rtol=1e-4, atol=1e-4)
    assert seen.features.std() > 0.01


def test_grey_images_are_refused_with_the_mend_and_seen_by_it(weights: Path) -> None:
    extractor, grey = InceptionExtractor(weights), IMAGES[:2, :1]
    with pytest.raises(ValueError, match=r"got \(2, 1, 40, 40\).*repeat the channel"):
        extract(extractor, grey)
    assert len(extract(extractor, grey.expand(-1, 3, -1, -1))) == 2


def test_spatial_features_are_the_first_channels_after_norm_and_relu(
    weights: Path, seen: Features
) -> None:
    network = FeatureExtractorInceptionV3(
        "other", ["2048"], feature_extractor_weights_path=str(weights)
    )
    inputs: list[torch.Tensor] = []
    network.Mixed_6d.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    network(torch.from_numpy(PIXELS).movedim(-1, 1))
    branch = network.Mixed_6d.branch1x1
    layer = F.conv2d(inputs[0], branch.conv.weight)
    norm = branch.bn
    layer = (layer - norm.running_mean[:, None, None]) / torch.sqrt(
        norm.running_var[:, None, None] + norm.eps
    )
    layer = (layer * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    expected = layer[:, :7].permute(0, 2, 3, 1).reshape(len(PIXELS), -1)
    assert expected.shape == (10, 2023)
    assert seen.spatial is not None
    torch.testing.assert_close(seen.spatial, expected, rtol=1e-4, atol=1e-4)
    assert seen.spatial.min() == 0


def test_moments_alone_are_enough_for_fid(weights: Path, seen: Features, tmp_path: Path) -> None:
    extractor = InceptionExtractor(weights)
    own = ReferenceStatistics.from_features(seen)
    np.savez(tmp_path / "alone.npz", mu=own.mean, sigma=own.covariance)
    alone = load_openai_reference(tmp_path / "alone.npz", extractor)
    assert (alone.count, alone.features, alone.spatial) == (None, None, None)
    assert fid(seen, alone) == fid(seen, own)
    alone.save(tmp_path / "kept.safetensors")
    kept = ReferenceStatistics.load(tmp_path / "kept.safetensors")
    assert kept.count is None
    assert fid(seen, kept) == fid(seen, own)
    with pytest.raises(ValueError, match="need the reference's features"):
        image_quality(seen, alone)


def reference_file(folder: Path, seen: Features, **changes: np.ndarray) -> Path:
    found = ReferenceStatistics.from_features(seen)
    assert found.spatial is not None
    held = {
        "arr_0": PIXELS,
        "mu": found.mean + 1,
        "sigma": found.covariance,
        "mu_s": found.spatial.mean - 2,
        "sigma_s": found.spatial.covariance,
    }
    np.savez(folder / "reference.npz", **held | changes)
    return folder / "reference.npz"


def test_distances_are_to_the_files_moments(weights: Path, seen: Features, tmp_path: Path) -> None:
    extractor = InceptionExtractor(weights)
    reference = load_openai_reference(reference_file(tmp_path, seen), extractor, 4)
    quality = image_quality(seen, reference)
    # Same covariances: what is left is the distance of the means.
    assert quality.fid == pytest.approx(2048, rel=1e-5)
    assert quality.sfid == pytest.approx(4 * 2023, rel=1e-5)
    assert (quality.precision, quality.recall) == (1, 1)
    reference.save(tmp_path / "kept.safetensors")
    kept = ReferenceStatistics.load(tmp_path / "kept.safetensors")
    assert image_quality(seen, kept) == quality


def test_few_samples_have_the_distance_that_the_matrix_root_gives() -> None:
    generator = np.random.default_rng(3)
    few, many = generator.normal(size=(6, 9)), 2 * generator.normal(size=(40, 9)) + 1
    reference = ReferenceStatistics.from_features(
        Features(torch.from_numpy(many), torch.zeros(40, 2), "toy")
    )
    ours = Features(torch.from_numpy(few), torch.rand(6, 2), "toy")
    root = sqrtm(np.cov(few.T) @ reference.covariance).real
    means = ((few.mean(0) - reference.mean) ** 2).sum()
    expected = means + np.trace(np.cov(few.T) + reference.covariance - 2 * root)
    assert image_quality(ours, reference).fid == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"arr_0": PIXELS.astype(np.float32)}, "not uint8"),
        ({"mu": np.zeros(5)}, "float64 mean"),
        ({"mu_s": np.zeros(5)}, "spatial features"),
        ({"arr_0": np.array([Path()], dtype=object)}, "no reference batch"),
        ({"sigma": -np.eye(2048)}, "negative in some direction"),
        ({"sigma_s": np.eye(2023) - 2 * np.eye(2023)[::-1]}, "negative in some direction"),
        ({"mu": np.zeros(2048, complex)}, "real numbers"),
    ],
)
def test_wrong_reference_batches_are_refused(
    changes: dict[str, np.ndarray], problem: str, weights: Path, seen: Features, tmp_path: Path
) -> None:
    path = reference_file(tmp_path, seen, **changes)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_openai_reference(path, InceptionExtractor(weights))
    assert "\n" not in str(caught.value)


def test_files_without_moments_are_refused(weights: Path, tmp_path: Path) -> None:
    extractor = InceptionExtractor(weights)
    np.savez(tmp_path / "images.npz", arr_0=PIXELS)
    np.savez(tmp_path / "half.npz", mu=np.zeros(2048), sigma=np.eye(2048), mu_s=np.zeros(2023))
    np.save(tmp_path / "array.npy", PIXELS)
    for name in ("images.npz", "half.npz", "array.npy"):
        with pytest.raises(CheckpointError, match="no reference batch"):
            load_openai_reference(tmp_path / name, extractor)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    hostile, other = tmp_path / "hostile.pth", tmp_path / "other.pth"
    hostile.write_bytes(pickle.dumps({"weight": Path()}))
    torch.save({"weight": torch.zeros(2)}, other)
    for path in (hostile, other, tmp_path / "absent.pth"):
        with pytest.raises(CheckpointError) as caught:
            InceptionExtractor(path)
        assert "\n" not in str(caught.value)
