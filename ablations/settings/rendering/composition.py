"""Random scenes: which solids stand where, in which colours, under which light and camera.

Everything that is random about a scene is a hash of its seed, so a scene depends on its seed
alone.

World: z points up, the ground is z = 0, lengths are in metres. The camera looks down far enough
that every ray meets the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ablations.settings.rendering.solids import FLOORS, RADII, SHAPES, Floats, Integers

__all__ = ["SOLIDS", "Scenes", "draw_scenes"]

SOLIDS = 3
"""The most that a scene holds."""


@dataclass(frozen=True)
class Scenes:
    """N scenes of up to 3 solids; colours are linear RGB in [0, 1], angles radians.

    Attributes:
        shape: (N, 3) index of each solid's shape; -1 where there is no solid.
        size: (N, 3) metres per unit of the solid's own coordinates.
        centre: (N, 3, 3) of each solid's own coordinates.
        yaw: (N, 3) about the vertical.
        colours: (N, 3, 2, 3) two per solid, which its texture mixes.
        texture: (N, 3) bands per unit of height; 0 for none.
        eye: (N, 3) the camera's place.
        axes: (N, 3, 3) rows: right, up and forward of the camera.
        light: (N, 3) unit vector towards the light.
        ambient: (N,) share of the light that comes from everywhere.
        ground: (N, 2, 3) its two colours.
        tiles: (N, 4) of its texture: angle, tiles per metre in two directions, phase.
    """

    shape: Integers
    size: Floats
    centre: Floats
    yaw: Floats
    colours: Floats
    texture: Floats
    eye: Floats
    axes: Floats
    light: Floats
    ambient: Floats
    ground: Floats
    tiles: Floats

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: slice) -> Scenes:
        """Some of the scenes."""
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class HashedDraws:
    """Uniform numbers that depend on a scene's seed and on their place in the scene."""

    def __init__(self, seeds: npt.NDArray[np.uint64]) -> None:
        self.state = _mixed(seeds)
        self.drawn = 0

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        """(N, *shape) in [low, high)."""
        count = int(np.prod(shape))
        places = np.arange(self.drawn + 1, self.drawn + count + 1, dtype=np.uint64)
        self.drawn += count
        bits = _mixed(self.state[:, None] + places * np.uint64(0x9E3779B97F4A7C15))
        unit = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return (np.float32(low) + np.float32(high - low) * unit).reshape(-1, *shape)

    def below(self, count: int, *shape: int) -> Integers:
        """(N, *shape) integers in [0, count)."""
        return np.minimum(self.uniform(0, count, *shape).astype(np.int64), count - 1)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def draw_scenes(seeds: Sequence[int] | range) -> Scenes:
    """Random scenes, one per seed.

    The first solid is the largest and is near the middle of the image; the others stand around
    it, and are smaller.

    Raises:
        ValueError: for a negative seed.
    """
    if len(seeds) and min(seeds) < 0:
        raise ValueError(f"a scene's seed must not be negative, got {min(seeds)}")
    draws = HashedDraws(np.array(seeds, np.uint64) + np.uint64(1))
    solids = draws.below(SOLIDS, 1) + 1
    shape = np.where(np.arange(SOLIDS) < solids, draws.below(len(SHAPES), SOLIDS), -1)
    size = draws.uniform(0.4, 0.65, SOLIDS)
    size[:, :1] = draws.uniform(0.85, 1.15, 1)
    angle = draws.uniform(0, 2 * np.pi, 1) + np.cumsum(draws.uniform(1.7, 2.6, SOLIDS), axis=1)
    reach = size * RADII[shape]
    away = (reach + reach[:, :1]) * draws.uniform(1.0, 1.35, SOLIDS)
    away[:, 0] = 0
    centre = np.stack([away * np.cos(angle), away * np.sin(angle), -FLOORS[shape] * size], axis=-1)
    ground = _shades(draws, (0.0, 0.25), (0.6, 0.9), (0.8, 0.92))
    colours = _shades(draws, (0.45, 0.9), (0.65, 1.0), (0.6, 0.75), SOLIDS)
    texture = draws.uniform(1.5, 3.0, SOLIDS) * (draws.below(4, SOLIDS) == 0)
    tiles = np.stack(
        [
            draws.uniform(0, np.pi),
            draws.uniform(0.3, 0.7) * (draws.below(2) > 0),
            draws.uniform(0.3, 0.7) * (draws.below(3) > 1),
            draws.uniform(0, 1),
        ],
        axis=1,
    )
    eye, axes = _cameras(draws)
    tilt, turn = draws.uniform(0.8, 1.25), draws.uniform(0, 2 * np.pi)
    light = _direction(tilt, turn)
    ambient = draws.uniform(0.45, 0.55)
    return Scenes(
        shape, size, centre.astype(np.float32), draws.uniform(0, 2 * np.pi, SOLIDS), colours,
        texture, eye, axes, light, ambient, ground, tiles,
    )  # fmt: skip


def _cameras(draws: HashedDraws) -> tuple[Floats, Floats]:
    """Places and axes of cameras that look down on the middle of the scene."""
    back = _direction(draws.uniform(0.5, 0.9), draws.uniform(0, 2 * np.pi))
    target = draws.uniform(-0.3, 0.3, 3) + np.float32([0, 0, 0.6])
    eye = target + draws.uniform(6.0, 7.5, 1) * back
    right = np.stack([-back[:, 1], back[:, 0], np.zeros(len(back), np.float32)], axis=1)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return eye, np.stack([right, np.cross(back, right), -back], axis=1)


def _direction(elevation: Floats, azimuth: Floats) -> Floats:
    flat = np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=-1)


def _shades(
    draws: HashedDraws,
    saturations: tuple[float, float],
    values: tuple[float, float],
    darker: tuple[float, float],
    *shape: int,
) -> Floats:
    """(N, *shape, 2, 3) colours and darker ones of the same hue."""
    hue, saturation = draws.uniform(0, 1, *shape), draws.uniform(*saturations, *shape)
    value = draws.uniform(*values, *shape)
    both = np.stack([value, value * draws.uniform(*darker, *shape)], axis=-1)
    return _rgb(hue[..., None], saturation[..., None], both)


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Colours (..., 3) of hues in turns, saturations and values in [0, 1]."""
    place = (hue[..., None] * 6 + np.float32([5, 3, 1])) % 6
    dip = np.clip(np.minimum(place, 4 - place), 0, 1)
    return (value[..., None] * (1 - saturation[..., None] * dip)).astype(np.float32)
