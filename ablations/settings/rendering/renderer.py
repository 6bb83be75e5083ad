"""What a camera sees of scenes: image, class, depth and segmentation.

Many scenes are rendered at a time, by numpy. A ray's direction has component 1 along the optical
axis, so that its parameter is the depth, as depth cameras and data sets give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import numpy.typing as npt

from ablations.settings.rendering.composition import SOLIDS, Scenes
from ablations.settings.rendering.solids import (
    NOTHING,
    SHAPES,
    SOLID_SHAPES,
    Floats,
    Integers,
    intersect,
    outward_normal,
    turned,
)

__all__ = ["HALF_VIEW", "SIZE", "Rendered", "render"]

SIZE = 32
SAMPLES = ((0.0, 0.0), (-0.35, -0.1), (0.1, 0.35), (0.25, -0.3))
"""Rays of a pixel, in pixels from its centre: the first gives depth and label, all the colour."""
CHUNK = 32
"""Scenes at a time: few enough for the cache, enough to hide what a call of numpy costs."""
HALF_VIEW = 0.3
"""Tangent of half the angle of view."""


@dataclass(frozen=True)
class Rendered:
    """What is seen of N scenes.

    Attributes:
        images: (N, 3, 32, 32) uint8 RGB, four rays per pixel.
        classes: (N,) int64, index into ``SHAPES``: of the solid that is seen at the most pixel
            centres; of two that are seen at as many, the one listed first in the scene.
        depth: (N, 32, 32) float32, metres along the optical axis at the pixel centres.
        segments: (N, 32, 32) uint8, index into ``SEGMENTS`` at the pixel centres.
    """

    images: npt.NDArray[np.uint8]
    classes: Integers
    depth: Floats
    segments: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.classes)


def render(scenes: Scenes) -> Rendered:
    """Images, classes, depth and segmentation of scenes."""
    starts = range(0, max(1, len(scenes)), CHUNK)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        parts = [_render(scenes[start : start + CHUNK]) for start in starts]
    arrays = ([getattr(part, field.name) for part in parts] for field in fields(Rendered))
    return Rendered(*map(np.concatenate, arrays))


def _film() -> tuple[Floats, Floats]:
    """(R,) right and up components of all rays: sample by sample, row by row."""
    pixels = (np.arange(SIZE) + 0.5) * 2 / SIZE - 1
    rights = [pixels[None, :] + right * 2 / SIZE + 0 * pixels[:, None] for right, _ in SAMPLES]
    ups = [-pixels[:, None] - down * 2 / SIZE + 0 * pixels[None, :] for _, down in SAMPLES]
    return (
        (HALF_VIEW * np.stack(rights)).ravel().astype(np.float32),
        (HALF_VIEW * np.stack(ups)).ravel().astype(np.float32),
    )


RIGHT, UP = _film()


@dataclass(frozen=True)
class _Hits:
    """Where rays meet solids of one shape; all (H,).

    Attributes:
        scene, slot, ray: which solid of which scene, and which ray.
        depth: parameter of the ray.
        lit: cosine between normal and light, not negative.
        upward: component of the normal.
        height: z in the solid's own coordinates.
    """

    scene: Integers
    slot: Integers
    ray: Integers
    depth: Floats
    lit: Floats
    upward: Floats
    height: Floats


def _render(scenes: Scenes) -> Rendered:
    count, rays = len(scenes), len(RIGHT)
    direction = [
        scenes.axes[:, 2, k, None] + scenes.axes[:, 0, k, None] * RIGHT
        + scenes.axes[:, 1, k, None] * UP
        for k in range(3)
    ]  # fmt: skip
    depth = -scenes.eye[:, 2, None] / direction[2]
    place = [scenes.eye[:, k, None] + depth * direction[k] for k in range(3)]
    colour = _ground(scenes, place, depth)
    front = np.full((count, rays), SOLIDS)
    lit = np.tile(scenes.light[:, 2, None], rays)
    upward = np.ones_like(depth)
    for hit in chain.from_iterable(_seen(scenes, kind) for kind in range(len(SHAPES))):
        at = hit.scene, hit.ray
        nearer = hit.depth < depth[at]
        at = hit.scene[nearer], hit.ray[nearer]
        slot = hit.slot[nearer]
        bands = hit.height[nearer] * scenes.texture[at[0], slot]
        second = (bands - np.floor(bands) >= 0.5).astype(np.int64)
        depth[at], front[at] = hit.depth[nearer], slot
        lit[at], upward[at] = hit.lit[nearer], hit.upward[nearer]
        colour[at] = scenes.colours[at[0], slot, second]
    scene, ray = (front < SOLIDS).nonzero()
    for k in range(3):
        place[k][scene, ray] = scenes.eye[scene, k] + depth[scene, ray] * direction[k][scene, ray]
    lit *= ~_shadowed(scenes, place, front)
    ambient = scenes.ambient[:, None]
    shade = ambient * (0.7 + 0.3 * upward) + (1 - ambient) * lit
    colour *= shade[:, :, None]
    pixels = colour.reshape(count, len(SAMPLES), SIZE, SIZE, 3).mean(axis=1)
    images = np.minimum(pixels * 255 + 0.5, 255).astype(np.uint8)
    centres = front[:, : SIZE * SIZE]
    covered = np.stack([(centres == slot).sum(axis=1) for slot in range(SOLIDS)], axis=1)
    labels = np.concatenate([scenes.shape + 1, np.zeros((count, 1), np.int64)], axis=1)
    return Rendered(
        np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        np.take_along_axis(scenes.shape, covered.argmax(axis=1)[:, None], axis=1)[:, 0],
        depth[:, : SIZE * SIZE].reshape(count, SIZE, SIZE),
        np.take_along_axis(labels, centres, axis=1).reshape(count, SIZE, SIZE).astype(np.uint8),
    )


def _seen(scenes: Scenes, kind: int) -> Iterator[_Hits]:
    """Where camera rays meet the solids of a shape, at most one solid of a scene at a time."""
    scene, slot = (scenes.shape == kind).nonzero()
    rank = np.arange(len(scene)) - np.searchsorted(scene, scene)
    for turn in range(int(rank.max(initial=-1)) + 1):
        yield _hits(scenes, kind, scene[rank == turn], slot[rank == turn])


def _hits(scenes: Scenes, kind: int, scene: Integers, slot: Integers) -> _Hits:
    """Where camera rays meet the solids (scene, slot), (P,) each, of one shape."""
    shape, size = SOLID_SHAPES[SHAPES[kind]], scenes.size[scene, slot]
    offset = scenes.centre[scene, slot] - scenes.eye[scene]
    ahead = np.einsum("pak,pk->pa", scenes.axes[scene], offset)
    along = ahead[:, 2:] + ahead[:, :1] * RIGHT + ahead[:, 1:2] * UP
    outside = (offset**2).sum(axis=1) - (shape.radius * size) ** 2
    pair, ray = (along * along > outside[:, None] * (1 + RIGHT**2 + UP**2)).nonzero()
    cosine, sine = np.cos(scenes.yaw[scene, slot]), np.sin(scenes.yaw[scene, slot])
    own = turned(np.moveaxis(scenes.axes[scene], 1, 0) / size[:, None], cosine, sine)
    origin = [part[pair] for part in turned(-offset / size[:, None], cosine, sine)]
    right, up = RIGHT[ray], UP[ray]
    direction = [part[2][pair] + part[0][pair] * right + part[1][pair] * up for part in own]
    depth, plane = intersect(shape, origin, direction)
    met = np.flatnonzero(depth < NOTHING)
    depth, pair, ray = depth[met], pair[met], ray[met]
    place = [o[met] + depth * d[met] for o, d in zip(origin, direction, strict=True)]
    normal = outward_normal(shape, place, plane[met])
    light = [part[pair] for part in turned(scenes.light[scene], cosine, sine)]
    lit = np.maximum(sum(n * towards for n, towards in zip(normal, light, strict=True)), 0)
    return _Hits(scene[pair], slot[pair], ray, depth, lit, normal[2], place[2])


def _shadowed(scenes: Scenes, place: list[Floats], front: Integers) -> npt.NDArray[np.bool_]:
    """(N, R) whether another solid is between a point and the light."""
    dark = np.zeros(front.shape, bool)
    for kind, shape in enumerate(SOLID_SHAPES.values()):
        scene, slot = (scenes.shape == kind).nonzero()
        if not len(scene):
            continue
        size, light = scenes.size[scene, slot], scenes.light[scene]
        centre = scenes.centre[scene, slot]
        offset = [place[k][scene] - centre[:, k, None] for k in range(3)]
        along = sum(offset[k] * light[:, k, None] for k in range(3))
        aside = sum(part * part for part in offset) - along * along
        near = (aside < ((shape.radius * size) ** 2)[:, None]) & (along < 0)
        near &= front[scene] != slot[:, None]
        pair, ray = near.nonzero()
        cosine, sine = np.cos(scenes.yaw[scene, slot]), np.sin(scenes.yaw[scene, slot])
        towards = [part[pair] for part in turned(light / size[:, None], cosine, sine)]
        start = np.stack([part[pair, ray] for part in offset], axis=1) / size[pair, None]
        depth, _ = intersect(shape, turned(start, cosine[pair], sine[pair]), towards)
        met = depth < NOTHING
        dark[scene[pair[met]], ray[met]] = True
    return dark


def _ground(scenes: Scenes, place: list[Floats], depth: Floats) -> Floats:
    """(N, R, 3) colours of the ground: bands or tiles that fade in the distance."""
    angle, first, second, phase = (scenes.tiles[:, k, None] for k in range(4))
    x, y = place[0], place[1]
    across = np.floor((x * np.cos(angle) + y * np.sin(angle)) * first + phase)
    across += np.floor((y * np.cos(angle) - x * np.sin(angle)) * second + phase)
    odd = across - 2 * np.floor(across / 2)
    far = (depth / 14) ** 2
    mixed = 0.5 + (odd - 0.5) * np.exp(-far * far)
    one, two = scenes.ground[:, None, 0], scenes.ground[:, None, 1]
    return one + (two - one) * mixed[:, :, None]
