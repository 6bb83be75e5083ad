"""Features: extracted in batches, joined, lent to torch-fidelity, and refused where broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ppap.evaluation.features import Features, extract, register_extractor
from ppap.files.images import from_uint8
from tests.ppap.statistics import NAME, Toy, normal, pixels


def test_batches_do_not_matter() -> None:
    images = from_uint8(pixels(120, seed=3))
    whole, parts = extract(Toy(), images), extract(Toy(), images, batch=7)
    torch.testing.assert_close(whole.features, parts.features)
    torch.testing.assert_close(whole.logits, parts.logits)
    assert whole.extractor == NAME


def test_features_slice_and_join() -> None:
    features = normal(10)
    joined = Features.cat([features[:3], features[torch.arange(3, 10)]])
    assert torch.equal(joined.features, features.features)
    assert joined.extractor == NAME
    with pytest.raises(ValueError, match="one extractor"):
        Features.cat([features, replace(features, extractor="other")])


def test_spatial_features_are_joined_where_every_part_has_them() -> None:
    features = normal(4)
    spatial = replace(features, spatial=2 * features.features)
    joined = Features.cat([spatial[:1], spatial[1:]])
    assert joined.spatial is not None
    assert torch.equal(joined.spatial, 2 * features.features)
    assert Features.cat([spatial, features]).spatial is None


def test_pixels_span_the_unit_range() -> None:
    ends = from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == [-1.0, 1.0]


def test_a_name_is_registered_once() -> None:
    toy = Toy("toy-twice")
    assert register_extractor(toy) == "toy-twice"
    with pytest.raises(ValueError, match="already has"):
        register_extractor(toy)


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
