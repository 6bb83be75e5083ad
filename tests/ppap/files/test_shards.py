"""Images in a folder: read lazily, written whole, refused where they are others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppap.files.checkpoints import CheckpointError
from ppap.files.shards import ImageShards, claim_folder, shard_bounds, write_shard

SHAPE = (3, 4, 5)


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *SHAPE), generator=generator, dtype=torch.uint8)


def written(folder: Path, count: int, size: int) -> tuple[ImageShards, Tensor]:
    images = pixels(count)
    for start, stop in shard_bounds(count, size):
        write_shard(folder, (start, stop), images[start:stop])
    return ImageShards(folder, count, SHAPE, size), images


def test_shards_cover_the_images_once() -> None:
    assert shard_bounds(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert shard_bounds(6, 3) == [(0, 3), (3, 6)]
    assert shard_bounds(0, 3) == []


@pytest.mark.parametrize(
    "chosen",
    [slice(None), slice(2, 5), slice(-2, None), slice(None, None, 2), slice(4, 2)],
)
def test_a_slice_reads_as_of_a_tensor(tmp_path: Path, chosen: slice) -> None:
    shards, images = written(tmp_path, 7, 3)
    assert len(shards) == 7
    assert shards.shape == images.shape
    assert torch.equal(shards[chosen], images[chosen])


def test_places_are_read_in_their_order_and_as_often_as_they_come(tmp_path: Path) -> None:
    shards, images = written(tmp_path, 7, 3)
    places = torch.tensor([6, 0, 3, 0, 5])
    assert torch.equal(shards[places], images[places])
    assert shards[places].dtype == torch.uint8
    assert len(shards[places[:0]]) == 0


def test_a_mask_chooses_as_of_a_tensor(tmp_path: Path) -> None:
    shards, images = written(tmp_path, 7, 3)
    mask = torch.tensor([False, True, True, False, False, False, True])
    assert torch.equal(shards[mask], images[mask])
    assert len(shards[mask & False]) == 0


@pytest.mark.parametrize(
    "chosen", [torch.ones(6) > 0, torch.ones(2), torch.ones(2, 2).long(), torch.ones(7, 3) > 0]
)
def test_what_chooses_no_images_is_refused(tmp_path: Path, chosen: Tensor) -> None:
    shards, _ = written(tmp_path, 7, 3)
    with pytest.raises(TypeError, match=r"whole numbers \(B,\) or a mask \(7,\)"):
        shards[chosen]


@pytest.mark.parametrize("place", [-1, 7])
def test_a_place_outside_is_refused(tmp_path: Path, place: int) -> None:
    shards, _ = written(tmp_path, 7, 3)
    with pytest.raises(IndexError, match="from 0 to 6"):
        shards[torch.tensor([0, place])]


def test_images_are_read_one_by_one_as_a_data_loader_asks_for_them(tmp_path: Path) -> None:
    shards, images = written(tmp_path, 7, 3)
    assert torch.equal(torch.stack(list(shards)), images)  # type: ignore[call-overload]
    assert torch.equal(shards[-1], images[6])
    assert torch.equal(shards[torch.tensor(4)], images[4])
    loaded = torch.cat(list(DataLoader(shards, batch_size=4)))  # type: ignore[arg-type]
    assert torch.equal(loaded, images)
    with pytest.raises(IndexError):
        shards[7]
    with pytest.raises(TypeError):
        shards[0.5]  # type: ignore[index]


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    shards, _ = written(tmp_path, 7, 3)
    assert shards.missing() == []
    (tmp_path / "00000003-00000006.npy").unlink()
    assert shards.missing() == [(3, 6)]
    with pytest.raises(CheckpointError, match="synthesize again"):
        shards[:5]


def test_a_shard_of_another_shape_or_damaged_is_refused(tmp_path: Path) -> None:
    shards, _ = written(tmp_path, 7, 3)
    np.save(tmp_path / "00000000-00000003.npy", np.zeros((3, 1, 4, 5), np.uint8))
    with pytest.raises(CheckpointError, match="delete it"):
        shards[:1]
    (tmp_path / "00000003-00000006.npy").write_bytes(b"no array")
    with pytest.raises(CheckpointError, match="damaged"):
        shards[3:4]


def test_a_folder_is_claimed_for_one_set_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    claim_folder(folder, {"shape": SHAPE, "first_seed": 0})
    claim_folder(folder, {"shape": SHAPE, "first_seed": 0})
    with pytest.raises(CheckpointError, match="first_seed 0, not 5"):
        claim_folder(folder, {"shape": SHAPE, "first_seed": 5})
    with pytest.raises(CheckpointError, match="steps None, not 25"):
        claim_folder(folder, {"shape": SHAPE, "first_seed": 0, "steps": 25})
    (folder / "images.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        claim_folder(folder, {})


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="name an empty folder"):
        claim_folder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
