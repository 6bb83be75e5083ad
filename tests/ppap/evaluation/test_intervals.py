"""Intervals against closed forms, against repeated draws, and against broken input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ppap.evaluation.features import Features
from ppap.evaluation.intervals import (
    bootstrap_fid,
    bootstrap_mean,
    fid_corrected,
    fid_infinity,
    holm,
    paired_fid,
    paired_mean,
)
from ppap.evaluation.metrics import fid
from ppap.evaluation.reference import ReferenceStatistics
from tests.ppap.statistics import NAME, normal, reference, standard


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


@pytest.mark.parametrize(("stretch", "shift"), [(1.0, 0.0), (1.5, 0.5)])
def test_fid_corrected_is_right_on_average_with_the_noise_of_fid(
    stretch: float, shift: float
) -> None:
    true, truth = standard(8), 8 * (shift**2 + (stretch - 1) ** 2)
    raw, corrected = [], []
    for seed in range(60):
        drawn = normal(60, seed=seed)
        moved = replace(drawn, features=drawn.features * stretch + shift)
        raw.append(fid(moved, true))
        corrected.append(fid_corrected(moved, true))
    error = np.std(corrected) / np.sqrt(len(corrected))
    assert abs(np.mean(corrected) - truth) < 4 * error
    assert np.mean(raw) - truth > 6 * error
    assert np.std(corrected) < 1.1 * np.std(raw)


def test_fid_corrected_of_one_dimension_and_of_independent_ones_by_hand() -> None:
    """Roots of variances are low by 1 / (4 (N - 1)) of themselves, and two by their mixture."""
    count, deviations = 40, np.array([2.0, 0.5])
    turns = 2 * np.pi * np.arange(count)[:, None] * np.array([1, 2]) / count
    waves = np.sqrt(2 * (count - 1) / count) * np.sin(turns) * deviations  # covariance: diagonal
    for size in (1, 2):
        s, own = deviations[:size], torch.from_numpy(waves[:, :size])
        lowered = s.sum() / (4 * (count - 1))
        if size == 2:
            lowered += 2 * s.prod() / s.sum() / (4 * (count - 1))
        bias = (s**2).sum() / count + 2 * lowered
        found = fid_corrected(Features(own, own, NAME), standard(size))
        assert found == pytest.approx(((s - 1) ** 2).sum() - bias, abs=1e-6)


def test_fid_corrected_does_not_depend_on_the_basis_of_the_features() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    seen, real = normal(100, shift=0.3), normal(300, seed=9)
    scales = torch.arange(1.0, 9.0)
    apart = [replace(f, features=f.features * scales) for f in (seen, real)]
    turned = [replace(f, features=f.features.double() @ torch.from_numpy(turn)) for f in apart]
    values = [fid_corrected(a, ReferenceStatistics.from_features(b)) for a, b in (apart, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_fid_corrected_needs_twice_as_many_images_as_dimensions() -> None:
    with pytest.raises(ValueError, match="16 or more"):
        fid_corrected(normal(15), reference())
    with pytest.raises(ValueError, match="other"):
        fid_corrected(replace(normal(100), extractor="other"), reference())


def test_fid_infinity_takes_the_bias_away() -> None:
    true = standard(8)
    plain = [fid(normal(400, shift=0.1, seed=i), true) for i in range(8)]
    extrapolated = [fid_infinity(normal(400, shift=0.1, seed=i), true) for i in range(8)]
    exact = 8 * 0.1**2
    assert np.mean(plain) - exact > 0.03
    assert abs(np.mean(extrapolated) - exact) < 0.3 * (np.mean(plain) - exact)


@pytest.mark.parametrize("groups", [[], [np.zeros(0)], [np.zeros((2, 2))]])
def test_empty_groups_are_refused(groups: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="vectors of samples"):
        bootstrap_mean(groups)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    whole, broken = [np.ones(3), np.zeros(2)], [np.ones(3), np.array([0.0, value])]
    with pytest.raises(ValueError, match="samples must be finite"):
        bootstrap_mean(broken)
    with pytest.raises(ValueError, match="samples must be finite"):
        paired_mean(broken, whole)


def test_samples_may_be_tensors_of_any_type() -> None:
    tensors = [torch.rand(n, generator=torch.Generator().manual_seed(n)) for n in (20, 30)]
    given = [tensor.bfloat16().requires_grad_() for tensor in tensors]
    arrays = [tensor.detach().double().numpy() for tensor in given]
    assert bootstrap_mean(given, 20) == bootstrap_mean(arrays, 20)
    assert paired_mean(given, arrays, 20).value == 0


@pytest.mark.parametrize("resamples", [0, 1])
def test_a_single_resample_has_no_spread_and_is_refused(resamples: int) -> None:
    groups = [normal(20).features]
    for interval in (
        lambda: bootstrap_mean([np.ones(3)], resamples=resamples),
        lambda: paired_mean([np.ones(3)], [np.zeros(3)], resamples=resamples),
        lambda: bootstrap_fid(groups, reference(), resamples=resamples),
        lambda: paired_fid(groups, groups, reference(), resamples=resamples),
    ):
        with pytest.raises(ValueError, match=f"resamples >= 2, got {resamples}"):
            interval()


def test_features_of_another_extractor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'toy-8'.*'other'"):
        fid_infinity(replace(normal(100), extractor="other"), reference())


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="32 or more"):
        fid_infinity(normal(31), reference())
    with pytest.raises(ValueError, match="2 or more"):
        bootstrap_fid([normal(1).features], reference())


def test_a_paired_difference_sees_what_unpaired_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    shared = [rng.normal(0, 10, 200) for _ in range(3)]
    ours = [group + 0.5 + rng.normal(0, 0.5, 200) for group in shared]
    paired = paired_mean(ours, shared)
    assert paired.low > 0
    assert paired.value == pytest.approx(
        np.mean([a.mean() - b.mean() for a, b in zip(ours, shared, strict=True)])
    )
    assert paired.p < 1e-6
    assert bootstrap_mean(ours).low < bootstrap_mean(shared).high


def test_no_difference_has_a_p_value_of_one() -> None:
    same = [np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0])]
    assert paired_mean(same, same).p == 1.0
    assert paired_mean(same, same).value == 0.0


def test_under_no_effect_few_paired_p_values_are_small() -> None:
    rng = np.random.default_rng(1)
    p_values = [
        paired_mean([rng.normal(size=80)], [rng.normal(size=80)], 199).p for _ in range(200)
    ]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.11


def test_paired_fid_differs_by_the_difference_and_is_sure_of_it() -> None:
    rng = np.random.default_rng(2)
    images = torch.from_numpy(rng.normal(size=(500, 4)))
    real = ReferenceStatistics.from_features(Features(images, images, "toy"))
    good = [rng.normal(size=(150, 4)) for _ in range(2)]
    bad = [group + 0.4 for group in good]
    found = paired_fid(bad, good, real, 100)
    expected = np.mean(
        [
            bootstrap_fid([b], real, 2).value - bootstrap_fid([g], real, 2).value
            for b, g in zip(bad, good, strict=True)
        ]
    )
    assert found.value == pytest.approx(expected)
    assert found.low > 0
    assert found.p < 1e-3
    same = paired_fid(good, good, real, 20)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1), "the same images are drawn"


def test_sides_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds and images"):
        paired_mean([np.zeros(3)], [np.zeros(4)])


def test_holm_steps_down() -> None:
    # By hand: sorted .005 .01 .03 .04 -> 4x.005, 3x.01, 2x.03, then never below the last.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.5])
