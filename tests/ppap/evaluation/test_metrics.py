"""Metrics against closed forms, against torch-fidelity, and against broken input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_prc import prc_features_to_metric

from ppap.evaluation.features import Features, extract, register_extractor
from ppap.evaluation.metrics import (
    correct,
    density_coverage,
    fid,
    frechet_distance,
    image_quality,
    inception_score,
    precision_recall,
)
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.images import from_uint8
from tests.ppap.statistics import NAME, Toy, normal, pixels, reference


class Pixels(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


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


def test_of_fewer_images_than_dimensions_the_distance_is_that_of_their_moments() -> None:
    few, real = normal(5, shift=0.3), reference()
    own = ReferenceStatistics.from_features(few)
    expected = frechet_distance(own.mean, own.covariance, real.mean, real.covariance)
    assert fid(few, real) == pytest.approx(expected, rel=1e-5)


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


def test_a_set_covers_itself_and_a_far_away_one_nothing() -> None:
    own = reference()
    density, coverage = density_coverage(own.matrix(), own)
    assert coverage == 1.0
    assert density > 1  # each image lies in its own ball, too
    assert density_coverage(normal(200, shift=20.0).features, own) == (0.0, 0.0)


def test_density_and_coverage_count_the_balls_of_the_reference() -> None:
    # On a line, the ball of each of 8 places reaches to its fifth neighbour: from 0 to 5, from 1
    # to 5, from 2 and 3 to 5 and 0, and the same from the other end. 0 lies in those of 0, 1, 2
    # and 3 alone, which are half of them.
    line = torch.arange(8.0)[:, None]
    own = ReferenceStatistics.from_features(Features(line, line, NAME))
    assert own.coverage_radii.tolist() == [5, 4, 3, 3, 3, 3, 4, 5]
    assert own.radii.tolist() == [3, 2, 2, 2, 2, 2, 2, 3]
    assert density_coverage(torch.zeros(3, 1), own) == (4 / 5, 4 / 8)


def test_dropped_modes_cost_coverage_and_crowding_raises_density() -> None:
    both = torch.cat([normal(200).features, normal(200, shift=30.0, seed=1).features])
    real = ReferenceStatistics.from_features(Features(both, both, NAME))
    assert density_coverage(both[:200], real)[1] == 0.5
    crowded = density_coverage(both[:200] * 0.1, real)[0]
    assert crowded > 2 * density_coverage(normal(200, seed=2).features, real)[0]


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


def test_the_inception_scores_last_split_is_what_is_left_over() -> None:
    # OpenAI's evaluator: preds[i : i + 5000] for i in range(0, len(preds), 5000).
    logits = 3 * torch.randn(5700, 4, generator=torch.Generator().manual_seed(0))
    logits[5000:, 0] += 4
    scores = []
    for part in (logits[:5000], logits[5000:]):
        p = part.double().softmax(1)
        scores.append((p * (p / p.mean(0)).log()).sum(1).mean().exp().item())
    assert inception_score(logits) == pytest.approx(sum(scores) / 2, rel=1e-12)
    assert inception_score(logits[:5000]) == pytest.approx(scores[0], rel=1e-12)


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


def test_precision_and_recall_are_torch_fidelitys_over_several_chunks() -> None:
    ours, real = normal(1300, 6, shift=0.4), reference(2001, 6)  # the last chunk is one image
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
    assert image_quality(whole, real) == image_quality(whole, real)
    assert image_quality(parts, real).fid == pytest.approx(fid(whole, real), rel=1e-6)


def test_correct_counts_the_top_class() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert correct(logits, torch.tensor([1, 0, 0])).tolist() == [1.0, 1.0, 0.0]
    logits[1, 0] = torch.nan
    with pytest.raises(ValueError, match="logits of row 1 hold NaN"):
        correct(logits, torch.tensor([1, 0, 0]))


@pytest.mark.parametrize("label", [2, -1])
def test_labels_of_another_classifier_are_not_simply_wrong(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} is none of the 2 classes"):
        correct(torch.eye(2), torch.tensor([0, label]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_without_a_distribution_have_no_inception_score(value: float) -> None:
    logits = torch.zeros(6, 4)
    logits[5, 1] = value
    with pytest.raises(ValueError, match="logits of row 5 is not finite"):
        inception_score(logits)
    for shape in ((0, 4), (4,)):
        with pytest.raises(ValueError, match="at least one row"):
            inception_score(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_any_type_are_measured_in_float64(dtype: torch.dtype) -> None:
    found = normal(100, shift=0.5)
    narrow, wide = (
        Features(*(part.to(dtype).to(other) for part in (found.features, found.logits)), NAME)
        for other in (dtype, torch.float64)
    )
    assert image_quality(narrow, reference()) == image_quality(wide, reference())
    matrices = [part.features.requires_grad_() for part in (narrow, wide)]
    first, second = (density_coverage(matrix, reference()) for matrix in matrices)
    assert first == second


def test_subsets_are_no_larger_than_either_set() -> None:
    kids = [
        image_quality(normal(100, shift=0.5), reference(50), 1, size).kid for size in (50, 80, 1000)
    ]
    assert kids == [kids[0]] * 3


def test_features_of_another_extractor_are_refused() -> None:
    stranger = replace(normal(100), extractor="other")
    for measure in (image_quality, fid):
        with pytest.raises(ValueError, match=r"'toy-8'.*'other'"):
            measure(stranger, reference())


def test_wrong_sizes_and_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(100, 7\)"):
        fid(normal(100, 7), reference())
    with pytest.raises(ValueError, match="4 or more"):
        image_quality(normal(3), reference())
    with pytest.raises(ValueError, match="need 4 images"):
        image_quality(normal(100), reference(3))
    with pytest.raises(ValueError, match="subset"):
        image_quality(normal(100), reference(), kid_subset_size=1)
    with pytest.raises(ValueError, match="of one D"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
