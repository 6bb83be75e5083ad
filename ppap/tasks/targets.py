"""Targets of guidance: from other images, from files and from masks.

All functions give one target per image, (N,) or (N, H, W); ``torch.stack`` and ``repeat`` do
the rest. Captions become targets in :func:`ppap.predictors.captions.text_targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ppap.compute.modules import evaluating
from ppap.compute.options import check_whole
from ppap.files.images import check_images
from ppap.files.pictures import read_grey, read_labels
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import IGNORED

__all__ = ["load_depth", "load_labels", "mask_labels", "targets_of_images"]

SOFT = 17
"""Brightnesses of a mask with soft edges; fewer may as well be numbers of objects."""
Size = tuple[int, int]
Numbers = npt.NDArray[Any]


@torch.no_grad()
def targets_of_images(
    predictor: Callable[[Tensor], Any], task: Task, images: Tensor, batch: int = 128
) -> Tensor:
    """What a predictor sees in clean images, as targets for others.

    Args:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction.
        task: what its predictions mean.
        images: (N, C, H, W) in [-1, 1], N at least 1.
        batch: images at a time.

    Returns:
        (N,) classes, (N, H, W) depth or labels, or (N, D) embeddings.

    Raises:
        ValueError: for no images, another shape, another type, such as bytes, or another range.
    """
    check_images(images)
    check_whole("batch", batch)
    with evaluating(predictor):
        return torch.cat([task.target(predictor(part)) for part in torch.split(images, batch)])


def load_depth(path: str | Path, size: Size | None = None, unknown: float | None = None) -> Tensor:
    """A depth map from an NPY file of (H, W) numbers or a greyscale image such as a PNG.

    Args:
        path: the file; its numbers are taken as they are: the greys of 8 or 16 bits, through a
            palette of greys if there is one, or the integers or floats of a TIFF.
        size: (H, W) to which the map is resized, each pixel a mean of known ones or unknown.
        unknown: a number that marks pixels without depth, such as 0; NaN always does.

    Returns:
        (H, W) float32, NaN where nothing is known.

    Raises:
        TypeError: for what is unknown that is no number.
        ValueError: for a file that is missing or holds no such map.
    """
    given: Any = unknown
    if given is not None and not isinstance(given, Real):
        raise TypeError(f"unknown is one number that marks pixels without depth, got {unknown!r}")
    read = partial(read_grey, exact=unknown is not None)
    depth = torch.from_numpy(_read(path, read).astype(np.float32))
    if unknown is not None:
        depth[depth == unknown] = torch.nan
    if depth.isinf().any() or depth.isnan().all():
        raise ValueError(f"{path} has infinite depths, or no known ones; mark them as NaN")
    if size is None or depth.shape == size:
        return depth
    known = ~depth.isnan()
    both = torch.stack([depth.nan_to_num(0.0), known.to(depth.dtype)])[:, None]
    total, share = F.interpolate(both, size, mode="bilinear", antialias=True)[:, 0]
    return torch.where(share > 0.5, total / share, torch.nan)


def load_labels(path: str | Path, size: Size | None = None) -> Tensor:
    """A label map from an NPY file of (H, W) integers or an image of one channel, or a palette.

    Args:
        path: the file. Pixels of -1, and in an image the last number of its 8 or 16 bits (255 or
            65535), say nothing. Of a palette of colours, as in PASCAL VOC, the places are the
            labels.
        size: (H, W) to which the map is resized, each pixel the label nearest to its centre.

    Returns:
        (H, W) int64, -1 where nothing is known.

    Raises:
        ValueError: for a file that is missing or holds no such map, or of which it is not clear
            which labels it means (:func:`ppap.files.pictures.read_labels`).
    """
    found = _read(path, read_labels)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{path} holds {found.dtype} numbers; labels are integers")
    labels = torch.from_numpy(found.astype(np.int64))
    if not _is_npy(path) and found.dtype.itemsize < 4:
        labels[labels == np.iinfo(found.dtype).max] = IGNORED
    if labels.min() < IGNORED:
        raise ValueError(f"{path} has the label {int(labels.min())}; -1 marks unlabelled pixels")
    return labels if size is None else _nearest(labels, size)


def mask_labels(mask: Tensor | Numbers | str | Path, inside: int, outside: int = IGNORED) -> Tensor:
    """Labels from a mask, as drawn by hand.

    Args:
        mask: (..., H, W) true or positive inside, or an NPY file of that, or an image file. Of an
            image's two brightnesses the brighter is inside; if it has one, white is inside and
            black is not; if its edges are soft, from black to white in 17 steps or more, what is
            brighter than the middle is inside.
        inside: label of what is masked.
        outside: label of the rest; by default nothing is asked of it.

    Returns:
        (..., H, W) int64.

    Raises:
        ValueError: for a file that is missing or no such mask, such as one of numbered objects.
    """
    if not isinstance(mask, str | Path):
        return torch.where(torch.as_tensor(mask) > 0, inside, outside)
    found = _read(mask, partial(read_grey, coloured=True))
    above = 0.0 if _is_npy(mask) else _ground(mask, found)
    return torch.where(torch.from_numpy(found > above), inside, outside)


def _ground(path: str | Path, found: Numbers) -> float:
    """The greatest brightness outside the mask in an image."""
    values = np.unique(found)
    if len(values) <= 2:
        return float(values[0]) if len(values) == 2 else 0.0
    white = np.iinfo(found.dtype).max if found.dtype.kind == "u" else np.inf
    if len(values) < SOFT or values[0] > white / 8 or values[-1] < white * 7 / 8:
        raise ValueError(
            f"{path} has {len(values)} brightnesses from {values[0]} to {values[-1]}, not the two "
            "of a mask; give mask_labels a tensor, such as load_depth(path) > 127"
        )
    return white / 2


def _nearest(labels: Tensor, size: Size) -> Tensor:
    return F.interpolate(labels[None, None].double(), size, mode="nearest-exact")[0, 0].long()


def _is_npy(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".npy"


def _read(path: str | Path, read_image: Callable[[str | Path], Numbers]) -> Numbers:
    """(H, W) numbers of an NPY file or of an image."""
    if not _is_npy(path):
        return read_image(path)
    try:
        found: Numbers = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a map: {error}") from error
    if found.ndim != 2 or not found.size or found.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} holds {found.dtype} of shape {found.shape}; a map is (H, W) numbers: "
            "save one channel"
        )
    return np.asarray(found)
