"""Metrics against closed forms, against torch-fidelity, and against broken input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_prc import prc_features_to_metric

from ppap.metrics import (
    Features,
    ReferenceStatistics,
    bootstrap_fid,
    bootstrap_mean,
    correct,
    extract,
    fid,
    fid_infinity,
    frechet_distance,
    from_uint8,
    image_quality,
    precision_recall,
    register_extractor,
)

NAME = "toy-8"


class Toy:
    """A fixed random network: 8 features and 5 logits of each image on its own."""

    def __init__(self, name: str = NAME) -> None:
        self.name = name
        self.weight = torch.randn(3 * 4 * 4, 8, generator=torch.Generator().manual_seed(0)) / 4

    def __call__(self, images: Tensor) -> Features:
        hidden = torch.tanh(images.flatten(1) @ self.weight)
        return Features(hidden, 3 * hidden[:, :5])


class Pixels(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def pixels(count: int, seed: int, top: int = 256) -> Tensor:
    shape = (count, 3, 4, 4)
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, shape, generator=made, dtype=torch.uint8)


def normal(count: int, size: int = 8, shift: float = 0.0, seed: int = 0) -> Features:
    made = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, size, generator=made) + shift
    return Features(matrix, matrix[:, :5], NAME)


def reference(count: int = 500, size: int = 8, seed: int = 99) -> ReferenceStatistics:
    return ReferenceStatistics.from_features(normal(count, size, seed=seed))


def standard(size: int) -> ReferenceStatistics:
    return ReferenceStatistics(NAME, 10**6, np.zeros(size), np.eye(size))


def test_a_shift_of_the_mean_costs_its_squared_length() -> None:
    shift = np.array([1.0, -2.0, 0.5])
    cov = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]])
    assert frechet_distance(np.zeros(3), cov, shift, cov) == pytest.approx(5.25, abs=1e-6)


def test_scaling_the_covariance_costs_the_difference_of_deviations() -> None:
    # Commuting covariances: trace of (sqrt A - sqrt B)^2.
    distance = frechet_distance(np.zeros(4), np.eye(4), np.zeros(4), 9 * np.eye(4))
    assert distance == pytest.approx(4 * (3 - 1) ** 2)


def test_covariances_which_do_not_commute() -> None:
    # For 2 x 2 matrices the trace of sqrt(AB) is sqrt(tr AB + 2 sqrt(det AB)).
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance(np.ones(2), a, np.ones(2), b) == pytest.approx(expected)


def test_a_set_is_at_no_distance_from_itself() -> None:
    features = normal(300)
    own = ReferenceStatistics.from_features(features)
    quality = image_quality(features, own, kid_subset_size=300)
    assert quality.fid == pytest.approx(0, abs=1e-9)
    assert (quality.precision, quality.recall) == (1.0, 1.0)
    assert quality.kid < 1e-3  # unbiased, so below 0 for equal samples


def test_a_far_away_set_is_neither_precise_nor_complete() -> None:
    quality = image_quality(normal(200, shift=20.0), reference())
    assert (quality.precision, quality.recall) == (0.0, 0.0)
    assert quality.fid == pytest.approx(8 * 20**2, rel=0.02)
    assert quality.kid > 1


def test_dropped_modes_cost_recall_and_not_precision() -> None:
    both = torch.cat([normal(200).features, normal(200, shift=30.0, seed=1).features])
    real = ReferenceStatistics.from_features(Features(both, both, NAME))
    assert precision_recall(both[:200], real) == (1.0, 0.5)


@pytest.mark.parametrize("classes", [2, 10])
def test_inception_score_closed_forms(classes: int) -> None:
    matrix = normal(20 * classes).features
    flat = Features(matrix, torch.zeros(len(matrix), classes), NAME)
    sure = 50 * torch.eye(classes).repeat(20, 1)
    score = image_quality(flat, reference()).inception_score
    assert score == pytest.approx(1)
    score = image_quality(Features(matrix, sure, NAME), reference()).inception_score
    assert score == pytest.approx(classes)
    # Always the same class: sure, but not diverse.
    score = image_quality(Features(matrix, sure[:1].repeat(len(matrix), 1), NAME), reference())
    assert score.inception_score == pytest.approx(1)


def test_the_two_roads_through_torch_fidelity_agree() -> None:
    toy = Toy("toy-registered")
    made, real = pixels(230, seed=1, top=200), pixels(410, seed=2)
    ours = image_quality(
        extract(toy, from_uint8(made)),
        ReferenceStatistics.of(toy, from_uint8(real)),
        kid_subsets=7,
        kid_subset_size=150,
    )
    assert register_extractor(toy) == "toy-registered"
    theirs = torch_fidelity.calculate_metrics(
        input1=Pixels(made),
        input2=Pixels(real),
        feature_extractor="toy-registered",
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subsets=7,
        kid_subset_size=150,
        isc_splits=1,
        batch_size=64,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours.fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert ours.inception_score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours.precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0 < ours.recall < ours.precision < 1
    with pytest.raises(ValueError, match="already has"):
        register_extractor(toy)


def test_precision_and_recall_are_torch_fidelitys_over_several_chunks() -> None:
    ours, real = normal(1300, 6, shift=0.4), reference(1700, 6)
    assert real.features is not None
    theirs = prc_features_to_metric(
        ours.features.double(), real.features.double(), save_cpu_ram=False, verbose=False
    )
    precision, recall = precision_recall(ours.features, real)
    assert precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert recall == pytest.approx(theirs["recall"], rel=1e-6)


def test_quality_is_deterministic_and_batches_do_not_matter() -> None:
    images = from_uint8(pixels(120, seed=3))
    real = ReferenceStatistics.of(Toy(), from_uint8(pixels(150, seed=4)))
    whole, parts = extract(Toy(), images), extract(Toy(), images, batch=7)
    torch.testing.assert_close(whole.features, parts.features)
    torch.testing.assert_close(whole.logits, parts.logits)
    assert whole.extractor == NAME
    assert image_quality(whole, real) == image_quality(whole, real)
    assert image_quality(parts, real).fid == pytest.approx(fid(whole, real), rel=1e-6)


def test_features_slice_and_join() -> None:
    features = normal(10)
    joined = Features.cat([features[:3], features[torch.arange(3, 10)]])
    assert torch.equal(joined.features, features.features)
    assert joined.extractor == NAME
    with pytest.raises(ValueError, match="one extractor"):
        Features.cat([features, replace(features, extractor="other")])


def test_pixels_span_the_unit_range() -> None:
    ends = from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == [-1.0, 1.0]


def test_the_hierarchical_mean_contains_its_value_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few = bootstrap_mean([rng.random(100) < 0.7 for _ in range(3)])
    many = bootstrap_mean([rng.random(10000) < 0.7 for _ in range(3)])
    assert few.low <= few.value <= few.high
    assert many.low <= many.value <= many.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.value == pytest.approx(0.7, abs=0.02)


def test_the_interval_of_one_group_is_the_binomial_one() -> None:
    hits = np.arange(1000) < 800
    interval = bootstrap_mean([hits], resamples=2000)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert interval.value == 0.8
    assert interval.low == pytest.approx(0.8 - half, abs=0.003)
    assert interval.high == pytest.approx(0.8 + half, abs=0.003)


def test_seeds_which_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    agreeing = bootstrap_mean([rng.random(2000) < 0.7 for _ in range(4)])
    differing = bootstrap_mean([rng.random(2000) < p for p in (0.6, 0.65, 0.75, 0.8)])
    assert differing.high - differing.low > 2 * (agreeing.high - agreeing.low)


def test_groups_count_alike_whatever_their_size() -> None:
    assert bootstrap_mean([np.zeros(10), np.ones(1000)], resamples=20).value == 0.5


def test_bootstrap_intervals_repeat_with_the_seed() -> None:
    groups = [normal(60, seed=i).features for i in range(2)]
    first = bootstrap_fid(groups, reference(), resamples=20, seed=3)
    assert first == bootstrap_fid(groups, reference(), resamples=20, seed=3)
    assert first != bootstrap_fid(groups, reference(), resamples=20, seed=4)


def test_the_value_of_a_bootstrap_fid_is_the_plain_fid() -> None:
    groups = [normal(150, seed=i, shift=0.1) for i in range(2)]
    interval = bootstrap_fid([g.features.numpy() for g in groups], reference(), resamples=50)
    assert interval.value == pytest.approx(np.mean([fid(g, reference()) for g in groups]))
    assert interval.low < interval.value < interval.high


def test_bootstrap_fid_narrows_with_more_images() -> None:
    def width(count: int) -> float:
        interval = bootstrap_fid([normal(count, shift=0.5).features], standard(8), resamples=60)
        return interval.high - interval.low

    assert width(1600) < 0.65 * width(200)


def test_bootstrap_fid_covers_the_average_fid_of_as_many_images() -> None:
    true = standard(3)
    groups = [normal(150, 3, shift=0.4, seed=i) for i in range(60)]
    average = np.mean([fid(group, true) for group in groups])
    found = [bootstrap_fid([g.features], true, resamples=80) for g in groups]
    covered = np.mean([i.low <= average <= i.high for i in found])
    assert 0.85 <= covered <= 1.0


def test_fid_infinity_takes_the_bias_away() -> None:
    true = standard(8)
    plain = [fid(normal(400, shift=0.1, seed=i), true) for i in range(8)]
    extrapolated = [fid_infinity(normal(400, shift=0.1, seed=i), true) for i in range(8)]
    exact = 8 * 0.1**2
    assert np.mean(plain) - exact > 0.03
    assert abs(np.mean(extrapolated) - exact) < 0.3 * (np.mean(plain) - exact)


def test_correct_counts_the_top_class() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert correct(logits, torch.tensor([1, 0, 0])).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("half", [False, True])
def test_statistics_survive_the_file(tmp_path: Path, half: bool) -> None:
    real, path = reference(), tmp_path / "reference.safetensors"
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


def test_features_of_another_extractor_are_refused() -> None:
    stranger = replace(normal(100), extractor="other")
    for measure in (image_quality, fid, fid_infinity):
        with pytest.raises(ValueError, match=r"'toy-8'.*'other'"):
            measure(stranger, reference())


def test_wrong_sizes_and_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(100, 7\)"):
        fid(normal(100, 7), reference())
    with pytest.raises(ValueError, match="4 or more"):
        image_quality(normal(3), reference())
    with pytest.raises(ValueError, match="need 4 images"):
        image_quality(normal(100), reference(3))
    with pytest.raises(ValueError, match="32 or more"):
        fid_infinity(normal(31), reference())
    with pytest.raises(ValueError, match="2 images or more"):
        ReferenceStatistics.from_features(normal(1))
    with pytest.raises(ValueError, match="2 or more"):
        bootstrap_fid([normal(1).features], reference())
    with pytest.raises(ValueError, match="subset"):
        image_quality(normal(100), reference(), kid_subset_size=1)
    with pytest.raises(ValueError, match="of one D"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


@pytest.mark.parametrize("groups", [[], [np.zeros(0)], [np.zeros((2, 2))]])
def test_empty_groups_are_refused(groups: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="vectors of samples"):
        bootstrap_mean(groups)


def test_images_outside_the_contract_are_refused() -> None:
    with pytest.raises(ValueError, match="from_uint8"):
        extract(Toy(), pixels(4, seed=0))
    with pytest.raises(ValueError, match="from_uint8"):
        extract(Toy(), torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="leave"):
        extract(Toy(), torch.full((2, 3, 4, 4), 1.5))
    with pytest.raises(ValueError, match="leave"):
        extract(Toy(), torch.full((2, 3, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(torch.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        Features(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
