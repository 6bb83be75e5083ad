"""Targets from images, files and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ppap.files.images import from_uint8
from ppap.predictors.predictor import Predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.targets import load_depth, load_labels, mask_labels, targets_of_images

DEPTH = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000


def test_images_make_targets_through_a_predictor() -> None:
    images = torch.rand(5, 3, 4, 4) * 2 - 1
    assert torch.equal(
        targets_of_images(lambda x: x.mean(1), DepthTask(), images, 2), images.mean(1)
    )
    labels = targets_of_images(lambda x: x, SegmentationTask(), images, 2)
    assert torch.equal(labels, images.argmax(1))
    classes = targets_of_images(lambda x: x.mean((2, 3)), ClassTask(), images, 2)
    assert torch.equal(classes, images.mean((2, 3)).argmax(1))


def test_a_predictor_that_is_left_in_training_makes_its_usual_targets() -> None:
    network, images = nn.Sequential(nn.Dropout(0.5), nn.Flatten()), torch.rand(5, 3, 4, 4)
    found = targets_of_images(network.train(), ClassTask(), images)
    assert torch.equal(found, images.flatten(1).argmax(1))
    assert network.training


def test_bytes_and_images_of_another_range_make_no_targets() -> None:
    """Bytes, as a synthesis gives them, would wrap where they are normalised: 255 + 1 is 0."""
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    predictors = (Predictor(nn.Flatten()), lambda x: x.flatten(1).float())
    for predictor in predictors:
        with pytest.raises(ValueError, match="from_uint8"):
            targets_of_images(predictor, ClassTask(), pixels)
        with pytest.raises(ValueError, match=r"leave \[-1, 1\]"):
            targets_of_images(predictor, ClassTask(), pixels.float())
        with pytest.raises(ValueError, match="at least one"):
            targets_of_images(predictor, ClassTask(), from_uint8(pixels[:0]))
        found = targets_of_images(predictor, ClassTask(), from_uint8(pixels))
        assert torch.equal(found, pixels.flatten(1).argmax(1))


def test_depth_is_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    np.save(tmp_path / "depth.npy", DEPTH / 7)
    torch.testing.assert_close(
        load_depth(tmp_path / "depth.npy"), torch.from_numpy(DEPTH / 7).float()
    )
    Image.fromarray(DEPTH).save(tmp_path / "depth.png")
    found = load_depth(tmp_path / "depth.png", unknown=0)
    assert found.isnan().sum() == 1
    assert found[0, 0].isnan()
    assert torch.equal(found[1:], torch.from_numpy(DEPTH[1:]).float())


def test_resizing_depth_averages_what_is_known(tmp_path: Path) -> None:
    depth = np.full((8, 8), 5.0)
    depth[:4, :4] = np.nan
    np.save(tmp_path / "depth.npy", depth)
    found = load_depth(tmp_path / "depth.npy", (4, 4))
    assert found.isnan().tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    torch.testing.assert_close(found[~found.isnan()], torch.full((12,), 5.0))


def test_a_pixel_of_which_half_is_unknown_is_unknown_and_the_rest_is_a_mean(tmp_path: Path) -> None:
    depth = np.array([[1.0, 3.0, 2.0, np.nan, 7.0, 9.0, np.nan, np.nan]]).repeat(2, 0)
    np.save(tmp_path / "depth.npy", depth)
    narrow, wide = (load_depth(tmp_path / "depth.npy", size) for size in ((2, 8), (2, 16)))
    torch.testing.assert_close(narrow, torch.from_numpy(depth).float(), equal_nan=True)
    # Between two pixels a quarter of the one and three of the other.
    assert wide[0, :6].tolist() == pytest.approx([1, 1.5, 2.5, 2.75, 2.25, 2.0])
    assert wide[0, 6:9].isnan().tolist() == [True, True, False]
    assert wide[0, 8] == 7


def test_a_smaller_map_has_the_labels_at_the_centres_of_its_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(6)[None].repeat(3, 0))
    assert load_labels(tmp_path / "labels.npy", (1, 2)).tolist() == [[1, 4]]


def test_labels_are_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    labels = np.array([[0, 3, 255], [10, 1, 2]], np.uint8)
    image = Image.fromarray(labels)
    image.save(tmp_path / "grey.png")
    palette = image.copy()
    palette.putpalette(bytes((k * k) % 251 for k in range(768)))
    palette.save(tmp_path / "palette.png")
    np.save(tmp_path / "labels.npy", np.where(labels == 255, -1, labels.astype(int)))
    expected = torch.tensor([[0, 3, -1], [10, 1, 2]])
    for name in ("grey.png", "palette.png", "labels.npy"):
        assert torch.equal(load_labels(tmp_path / name), expected)
    doubled = load_labels(tmp_path / "grey.png", (4, 6))
    assert torch.equal(doubled, expected.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_mask_asks_for_a_label_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    drawn = torch.tensor([[True, False], [False, True]])
    assert mask_labels(drawn, 4).tolist() == [[4, -1], [-1, 4]]
    assert mask_labels(drawn.numpy(), 4).tolist() == [[4, -1], [-1, 4]]
    assert mask_labels(255 * drawn.numpy().astype(np.uint8), 4).tolist() == [[4, -1], [-1, 4]]
    Image.fromarray(drawn.numpy()).save(tmp_path / "mask.png")
    assert mask_labels(tmp_path / "mask.png", 4, outside=0).tolist() == [[4, 0], [0, 4]]


def test_a_mask_drawn_in_a_palette_is_the_picture_and_not_its_places(tmp_path: Path) -> None:
    drawn = np.zeros((6, 6), np.uint8)
    drawn[2:4, 1:5] = 255
    expected = mask_labels(torch.from_numpy(drawn), 7)
    indexed = Image.fromarray((drawn == 0).astype(np.uint8)).convert("P")
    for black, white in (([0, 0, 0], [255] * 3), ([20, 0, 0], [250, 250, 90])):
        indexed.putpalette(white + black)
        indexed.save(tmp_path / "mask.png")
        assert torch.equal(mask_labels(tmp_path / "mask.png", 7), expected)
    Image.fromarray(np.where(drawn, 90, 12).astype(np.uint8)).save(tmp_path / "grey.png")
    assert torch.equal(mask_labels(tmp_path / "grey.png", 7), expected)


def test_a_mask_with_soft_edges_is_cut_at_their_middle(tmp_path: Path) -> None:
    sharp = np.zeros((8, 8), np.uint8)
    sharp[2:6, 2:6] = 255
    Image.fromarray(sharp).resize((64, 64), Image.Resampling.BILINEAR).save(tmp_path / "soft.jpg")
    found = mask_labels(tmp_path / "soft.jpg", 1, 0)
    assert found.float().mean().item() == pytest.approx(0.25, abs=0.02)
    Image.fromarray(np.arange(9, dtype=np.uint8).reshape(3, 3)).save(tmp_path / "objects.png")
    with pytest.raises(ValueError, match="9 brightnesses from 0 to 8"):
        mask_labels(tmp_path / "objects.png", 1)


def test_depth_survives_a_palette_and_is_not_made_of_colours(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (4, 1))
    image = Image.fromarray(ramp).convert("RGB").quantize(64)
    image.save(tmp_path / "ramp.png")
    assert torch.equal(load_depth(tmp_path / "ramp.png"), torch.from_numpy(ramp).float())
    image.putpalette(bytes((k * k) % 251 for k in range(192)))
    image.save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="palette of colours"):
        load_depth(tmp_path / "colours.png")
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg")
    with pytest.raises(ValueError, match="compressed with loss"):
        load_depth(tmp_path / "ramp.jpg", unknown=0)


def test_the_last_of_16_bits_is_unlabelled_and_255_a_label(tmp_path: Path) -> None:
    labels = np.array([[0, 255], [846, 65535]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    assert load_labels(tmp_path / "labels.png").tolist() == [[0, 255], [846, -1]]
    Image.fromarray(labels.astype(np.int32)).save(tmp_path / "labels.tiff")
    assert load_labels(tmp_path / "labels.tiff").tolist() == labels.tolist()


def test_what_is_unknown_is_a_number(tmp_path: Path) -> None:
    """No pixel equals a text or a list, so that none was marked."""
    np.save(tmp_path / "a.npy", np.array([[0.0, 1.0]]))
    for number in (0, 0.0, np.float32(0), np.int64(0)):
        assert load_depth(tmp_path / "a.npy", unknown=number).isnan().tolist() == [[True, False]]
    for wrong in ("0", [0, 1]):
        with pytest.raises(TypeError, match="unknown is one number that marks"):
            load_depth(tmp_path / "a.npy", unknown=wrong)  # type: ignore[arg-type]


def test_files_that_hold_no_map_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_depth(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="cannot be read"):
        load_labels(tmp_path / "text.png")
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        load_depth(tmp_path / "empty.npy")
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="save one channel"):
        load_labels(tmp_path / "colour.png")
    np.save(tmp_path / "half.npy", np.ones((2, 2)) / 2)
    with pytest.raises(ValueError, match="integers"):
        load_labels(tmp_path / "half.npy")
    np.save(tmp_path / "negative.npy", np.full((2, 2), -3))
    with pytest.raises(ValueError, match="label -3"):
        load_labels(tmp_path / "negative.npy")
    np.save(tmp_path / "infinite.npy", np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match="infinite"):
        load_depth(tmp_path / "infinite.npy")
