"""Targets of guidance: from other images, from files and from masks.

All functions give one target per image, (N,) or (N, H, W); ``torch.stack`` and ``repeat`` do
the rest. Captions become targets in :func:`ppap.predictors.captions.text_targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import IGNORED

__all__ = ["load_depth", "load_labels", "mask_labels", "targets_of_images"]

Size = tuple[int, int]
UNLABELLED_BYTE = 255


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
    """
    return torch.cat([task.target(predictor(part)) for part in torch.split(images, batch)])


def load_depth(path: str | Path, size: Size | None = None, unknown: float | None = None) -> Tensor:
    """A depth map from an NPY file of (H, W) numbers or a greyscale PNG of 8 or 16 bits.

    Args:
        path: the file; its numbers are taken as they are.
        size: (H, W) to which the map is resized, each pixel a mean of known ones or unknown.
        unknown: a number that marks pixels without depth, such as 0; NaN always does.

    Returns:
        (H, W) float32, NaN where nothing is known.

    Raises:
        ValueError: for a file that is missing or holds no such map.
    """
    depth = torch.from_numpy(_read(path).astype(np.float32))
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
    """A label map from an NPY file of (H, W) integers or a PNG of one channel, or a palette.

    Args:
        path: the file. Pixels of -1, and in a PNG of 255, say nothing.
        size: (H, W) to which the map is resized, each pixel the label nearest to its centre.

    Returns:
        (H, W) int64, -1 where nothing is known.

    Raises:
        ValueError: for a file that is missing or holds no such map.
    """
    found = _read(path)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{path} holds {found.dtype} numbers; labels are integers")
    labels = torch.from_numpy(found.astype(np.int64))
    if Path(path).suffix.lower() != ".npy":
        labels[labels == UNLABELLED_BYTE] = IGNORED
    if labels.min() < IGNORED:
        raise ValueError(f"{path} has the label {int(labels.min())}; -1 marks unlabelled pixels")
    return labels if size is None else _nearest(labels, size)


def mask_labels(mask: Tensor | str | Path, inside: int, outside: int = IGNORED) -> Tensor:
    """Labels from a mask, as drawn by hand.

    Args:
        mask: (..., H, W) true or positive inside, or a greyscale PNG or NPY file of that.
        inside: label of what is masked.
        outside: label of the rest; by default nothing is asked of it.

    Returns:
        (..., H, W) int64.
    """
    if not isinstance(mask, Tensor):
        mask = torch.from_numpy(_read(mask).astype(np.float32))
    return torch.where(mask > 0, inside, outside)


def _nearest(labels: Tensor, size: Size) -> Tensor:
    return F.interpolate(labels[None, None].double(), size, mode="nearest-exact")[0, 0].long()


def _read(path: str | Path) -> npt.NDArray[Any]:
    """(H, W) numbers of an NPY file or of an image with one channel."""
    found: npt.NDArray[Any]
    try:
        if Path(path).suffix.lower() == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                found = np.array(image)
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read as a map: {error}") from error
    if found.ndim != 2 or not found.size or found.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} holds {found.dtype} of shape {found.shape}; a map is (H, W) numbers: "
            "save one channel"
        )
    return np.asarray(found)
