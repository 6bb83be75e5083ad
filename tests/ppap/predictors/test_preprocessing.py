"""An image processor is measured, and done as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ppap.files.checkpoints import CheckpointError
from ppap.predictors.public import load_predictor
from tests.ppap.predictors.saved_models import SIZE, in_range, pixels, saved


@pytest.mark.parametrize(
    ("kind", "settings", "size"),
    [
        ("Segformer", {"size": 24}, (24, 24)),
        ("Segformer", {"size": {"height": 24, "width": 20}}, (24, 20)),
        ("CLIP", {"size": {"shortest_edge": 24}, "do_center_crop": False}, (24, 24)),
        ("CLIP", {"size": {"shortest_edge": 28}, "crop_size": 28}, (28, 28)),
    ],
)
def test_sizes_are_the_processors(
    kind: str, settings: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    saved("segformer", tmp_path)  # which takes any size
    made = getattr(transformers, f"{kind}ImageProcessor")(**settings, resample=2)
    made.save_pretrained(tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    assert predictor.size == size
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    images = pixels(57)
    expected = processor(images, return_tensors="pt").pixel_values
    prepared = predictor.prepare(in_range(images))
    # The processor rounds to bytes after each of two passes; two halves of a step are this far.
    assert (prepared - expected).abs().max() < 1 / 255 / predictor.std.min()
    assert load_predictor(f"transformers/{tmp_path}", size=(16, 16)).size == (16, 16)


@pytest.mark.parametrize("model", ["clip", "vit"])
def test_a_size_that_fixed_positions_are_not_for_is_refused(model: str, tmp_path: Path) -> None:
    """That of a processor of another model as well as one that is asked for."""
    saved(model, tmp_path)
    with pytest.raises(ValueError, match="takes no images of 16 x 16"):
        load_predictor(f"transformers/{tmp_path}", size=(16, 16))
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"makes nothing of an image of 24 x 24 .*doesn't"):
        load_predictor(f"transformers/{tmp_path}")


def test_a_processor_that_leaves_sizes_gives_a_predictor_that_does(tmp_path: Path) -> None:
    saved("segformer", tmp_path)
    processor = transformers.SegformerImageProcessor(do_resize=False, do_normalize=False)
    processor.save_pretrained(tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    assert predictor.size is None
    torch.testing.assert_close(predictor.prepare(in_range(pixels(40))), pixels(40) / 255)


def test_a_processor_of_bytes_that_pads_is_understood(tmp_path: Path) -> None:
    """As that of facebook/dpt-dinov2-small-nyu: statistics of bytes, sides filled up to 14s."""
    saved("dpt", tmp_path)
    transformers.DPTImageProcessor(
        do_resize=False,
        do_rescale=False,
        do_pad=True,
        size_divisor=14,
        image_mean=[123.675, 116.28, 103.53],
        image_std=[58.395, 57.12, 57.375],
    ).save_pretrained(tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    assert predictor.size is None
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    images = pixels(42)
    expected = processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(predictor.prepare(in_range(images)), expected, rtol=0, atol=1e-5)


def test_preprocessing_that_mixes_channels_is_refused(tmp_path: Path) -> None:
    saved("segformer", tmp_path)
    transformers.MobileViTImageProcessor(size=SIZE, crop_size=SIZE).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Predictor of your own"):
        load_predictor(f"transformers/{tmp_path}")
