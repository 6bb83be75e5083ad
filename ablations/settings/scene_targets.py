"""Scenes as labelled data and as targets: class, inverse depth and segmentation of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ablations.settings import data
from ablations.settings.rendering.composition import draw_scenes
from ablations.settings.rendering.renderer import Rendered, render
from ablations.settings.setting import Split

__all__ = ["inverse_depth", "labelled", "numbered_targets", "target_scenes", "targets_of"]

LABELLED_SCENES = 10_000
"""Of each split: they are rendered, ten seconds of one core, wherever they are needed."""
TARGET_SCENE = 2 * 10**9
"""Seed of the first scene that targets are taken from."""
INVERSE_UNIT = 10.0


def inverse_depth(depth: Tensor) -> Tensor:
    """What depth estimators of this setting predict, from metres: per ten metres, so about 1."""
    return INVERSE_UNIT / depth


def targets_of(rendered: Rendered) -> dict[str, Tensor]:
    """What the networks of each task are to predict: (N,) or (N, 32, 32)."""
    return {
        "class": torch.from_numpy(rendered.classes),
        "depth": inverse_depth(torch.from_numpy(rendered.depth)),
        "segmentation": torch.from_numpy(rendered.segments).long(),
    }


@lru_cache
def labelled_scenes(split: Split) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (N, 3, 32, 32) uint8 of a split and the targets of each task."""
    found = data.load_scenes(split, LABELLED_SCENES)
    return torch.from_numpy(found.images), targets_of(found)


@lru_cache(maxsize=4)
def target_scenes(numbers: tuple[int, ...]) -> Rendered:
    """The scenes that the targets of these numbers are taken from."""
    return render(draw_scenes([TARGET_SCENE + number for number in numbers]))


def labelled(task: str, split: Split) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 of a split and a task's targets (N, ...)."""
    images, targets = labelled_scenes(split)
    return images, targets[task]


def numbered_targets(task: str, numbers: Sequence[int]) -> Tensor:
    """(N, ...) a task's targets by number; a number that comes twice is rendered once."""
    unique, places = np.unique(numbers, return_inverse=True)
    return targets_of(target_scenes(tuple(unique.tolist())))[task][torch.from_numpy(places)]
