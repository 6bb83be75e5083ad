"""Principal components of pixels against numpy's, their distances in closed form, saturation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap.evaluation.features import extract
from ppap.evaluation.metrics import fid, image_quality
from ppap.evaluation.pixels import PixelComponents, saturation
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.images import from_uint8
from tests.ppap.statistics import pixels


def textured(count: int, seed: int = 0) -> Tensor:
    """(count, 2, 4, 3) images whose values vary along a few directions, each less than before."""
    made = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, 24, generator=torch.Generator().manual_seed(5))
    strengths = 0.5 ** torch.arange(24)
    rows = torch.randn(count, 24, generator=made) * strengths @ directions
    return (rows / 12).clamp(-1, 1).view(count, 2, 4, 3)


@pytest.mark.parametrize("count", [200, 15])  # more images than values, and fewer
def test_components_are_the_right_singular_vectors_of_the_centred_pixels(count: int) -> None:
    images = textured(count)
    found = PixelComponents.fit(images, 6)
    rows = images.double().flatten(1).numpy()
    _, _, vectors = np.linalg.svd(rows - rows.mean(0))
    cosines = np.abs((found.components.numpy() * vectors[:6]).sum(1))
    assert cosines == pytest.approx(np.ones(6), abs=1e-9)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(6), atol=1e-12)
    largest = found.components.gather(1, found.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all(), "signs are chosen, not left to the solver"


def test_images_are_projected_from_the_fitted_mean_in_their_own_units() -> None:
    images = textured(50)
    fitted = PixelComponents.fit(images, 4)
    seen = extract(fitted, images, batch=7).features
    assert seen.dtype == torch.float64
    assert seen.mean(0).abs().max() < 1e-6
    along = fitted.mean + 0.3 * fitted.components[2]
    moved = fitted(along.view(1, 2, 4, 3).float()).features[0]
    np.testing.assert_allclose(moved, [0, 0, 0.3, 0], atol=1e-6)


def test_bytes_and_the_images_that_they_are_give_the_same_components() -> None:
    stored = pixels(40, seed=1)
    a, b = PixelComponents.fit(stored, 3), PixelComponents.fit(from_uint8(stored), 3)
    np.testing.assert_allclose(a.components, b.components, atol=1e-6)


def test_statistics_by_components_of_other_images_are_not_taken_for_ones_own() -> None:
    ours, theirs = textured(60, seed=1), textured(60, seed=2)
    fitted, other = PixelComponents.fit(ours, 4), PixelComponents.fit(theirs, 4)
    assert fitted.name.startswith("pixels-4-")
    assert fitted.name == PixelComponents.fit(ours + 1e-9, 4).name != other.name
    assert PixelComponents.fit(ours, 4, "mine").name == "mine"
    with pytest.raises(ValueError, match="reference statistics are of extractor"):
        fid(extract(fitted, ours), ReferenceStatistics.of(other, theirs))


def test_a_shift_of_the_images_costs_the_squared_length_that_the_components_see() -> None:
    images = textured(300) / 2
    fitted = PixelComponents.fit(images, 5)
    reference = ReferenceStatistics.of(fitted, images)
    shift = 0.2 * fitted.components[0] + 0.1 * fitted.components[4]
    moved = images + shift.view(1, 2, 4, 3).float()
    distance = fid(extract(fitted, moved), reference)
    assert distance == pytest.approx(0.2**2 + 0.1**2, rel=1e-3)


def test_stretched_images_cost_the_squares_of_what_their_deviations_gain() -> None:
    images = textured(400) / 2
    fitted = PixelComponents.fit(images, 3)
    reference = ReferenceStatistics.of(fitted, images)
    middle = fitted.mean.view(1, 2, 4, 3).float()
    stretched = middle + 1.5 * (images - middle)
    variances = np.diag(reference.covariance).sum()
    assert fid(extract(fitted, stretched), reference) == pytest.approx(0.25 * variances, rel=1e-4)


def test_every_figure_of_quality_can_be_had_from_pixels() -> None:
    images = textured(60)
    fitted = PixelComponents.fit(images, 4)
    quality = image_quality(extract(fitted, images), ReferenceStatistics.of(fitted, images))
    assert quality.fid == pytest.approx(0, abs=1e-6)
    assert (quality.precision, quality.recall) == (1.0, 1.0)
    assert quality.inception_score == 1.0  # there are no classes


def test_large_images_are_averaged_down() -> None:
    small = textured(30)
    large = small.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    fitted = PixelComponents.fit(small, 4)
    torch.testing.assert_close(fitted(large).features, fitted(small).features)
    from_large = PixelComponents.fit(large, 4, most=4)
    assert from_large.shape == (2, 4, 4)


def test_what_cannot_be_fitted_or_projected_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 9 components"):
        PixelComponents.fit(textured(10), 10)
    with pytest.raises(ValueError, match="N, C, H, W"):
        PixelComponents.fit(torch.zeros(10, 4), 2)
    for wrong, why in (
        (textured(30) * 200, "leave"),
        (textured(30) * torch.nan, "leave"),
        ((textured(30) * 100).long(), "from_uint8"),
    ):
        with pytest.raises(ValueError, match=why):
            PixelComponents.fit(wrong, 4)
    fitted = PixelComponents.fit(textured(30), 4)
    for measure in (fitted, saturation):
        with pytest.raises(ValueError, match="uint8"):
            measure(textured(2).long())
    with pytest.raises(ValueError, match="at least"):
        fitted(torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match="channels"):
        fitted(torch.zeros(2, 3, 4, 3))
    with pytest.raises(ValueError, match="have a mean"):
        PixelComponents("pixels", torch.zeros(3), torch.zeros(2, 3), (1, 2, 2))


def test_saturation_counts_values_within_one_grey_level_of_the_ends() -> None:
    levels = torch.tensor([0, 1, 2, 128, 253, 254, 255, 255], dtype=torch.uint8)
    found = saturation(levels.view(1, 1, 2, 4))
    assert (found.low, found.high, found.both) == (2 / 8, 3 / 8, 5 / 8)
    assert saturation(from_uint8(levels.view(1, 1, 2, 4))) == found
    with pytest.raises(ValueError, match="in \\[-1, 1\\]"):
        saturation(torch.full((1, 1, 2, 2), 1.5))
    with pytest.raises(ValueError, match="at least one"):
        saturation(torch.zeros(0, 1, 2, 2))
