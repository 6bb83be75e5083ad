"""Procedural scenes: solids on a ground plane, with their class, depth and segmentation.

Everything that is random about a scene is a hash of its seed, so a scene depends on its seed
alone, and many are rendered at a time, by numpy. All solids but one are convex (half-spaces
and at most one quadric) and met exactly; the torus is met by sphere tracing.

World: z points up, the ground is z = 0, lengths are in metres. The camera looks down far enough
that every ray meets the ground. A ray's direction has component 1 along the optical axis, so
that its parameter is the depth, as depth cameras and data sets give it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SEGMENTS", "SHAPES", "SIZE", "Rendered", "Scenes", "draw_scenes", "render"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

SIZE = 32
SOLIDS = 3
SAMPLES = ((0.0, 0.0), (-0.35, -0.1), (0.1, 0.35), (0.25, -0.3))
"""Rays of a pixel, in pixels from its centre: the first gives depth and label, all the colour."""
CHUNK = 32
"""Scenes at a time: few enough for the cache, enough to hide what a call of numpy costs."""
HALF_VIEW = 0.3
"""Tangent of half the angle of view."""
NOTHING = np.float32(np.inf)


@dataclass(frozen=True)
class Shape:
    """A solid in coordinates of its own, z up, about its bounding sphere's centre.

    Attributes:
        radius: of the bounding sphere.
        floor: the z that rests on the ground.
        planes: rows (n_x, n_y, n_z, d): the inside has n . p <= d; |n| = 1.
        quadric: (b, z_0, c): the inside has x^2 + y^2 + b (z - z_0)^2 <= c; None for none.
        torus: (distance of the tube's centre, radius of the tube); None for all other solids.
    """

    radius: float
    floor: float
    planes: tuple[tuple[float, float, float, float], ...] = ()
    quadric: tuple[float, float, float] | None = None
    torus: tuple[float, float] | None = None


def _sides(count: int, run: float, rise: float, distance: float) -> Any:
    """Half-spaces around the z axis whose normals go outwards by run and upwards by rise."""
    norm = float(np.hypot(run, rise))
    angles = np.arange(count) * 2 * np.pi / count
    return tuple(
        (run * np.cos(a) / norm, run * np.sin(a) / norm, rise / norm, distance / norm)
        for a in angles.tolist()
    )


def _between(low: float, high: float) -> Any:
    return ((0.0, 0.0, -1.0, -low), (0.0, 0.0, 1.0, high))


SOLID_SHAPES = {
    "sphere": Shape(0.95, -0.95, quadric=(1.0, 0.0, 0.95**2)),
    "dome": Shape(1.12, 0.0, _between(0.0, 9.0)[:1], (1.0, 0.0, 1.12**2)),
    "cylinder": Shape(1.11, -0.8, _between(-0.8, 0.8), (0.0, 0.0, 0.75**2)),
    "cone": Shape(1.2, -0.75, _between(-0.75, 1.1), (-((0.9 / 1.85) ** 2), 1.1, 0.0)),
    "frustum": Shape(1.2, -0.7, _between(-0.7, 0.7), (-((0.5 / 1.4) ** 2), 1.96, 0.0)),
    "torus": Shape(1.08, -0.32, torus=(0.75, 0.32)),
    "cube": Shape(1.22, -0.7, _sides(4, 1.0, 0.0, 0.7) + _between(-0.7, 0.7)),
    "pyramid": Shape(1.3, -0.6, _sides(4, 1.6, 0.85, 0.85) + _between(-0.6, 9.0)[:1]),
    "octahedron": Shape(1.1, -1.1, tuple(
        (x / 3**0.5, y / 3**0.5, z / 3**0.5, 1.1 / 3**0.5)
        for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)
    )),
    "wedge": Shape(1.25, -0.6, _sides(2, 1.4, 0.8, 0.64) + _between(-0.6, 9.0)[:1]
        + ((0.0, 1.0, 0.0, 0.8), (0.0, -1.0, 0.0, 0.8))),
}  # fmt: skip
SHAPES = tuple(SOLID_SHAPES)
"""The classes, in label order."""
SEGMENTS = ("ground", *SHAPES)
"""The labels of a segmentation, in order: the ground, then the classes."""
_RADII = np.array([shape.radius for shape in SOLID_SHAPES.values()], np.float32)
_FLOORS = np.array([shape.floor for shape in SOLID_SHAPES.values()], np.float32)


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


class _Draws:
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
    draws = _Draws(np.array(seeds, np.uint64) + np.uint64(1))
    solids = draws.below(SOLIDS, 1) + 1
    shape = np.where(np.arange(SOLIDS) < solids, draws.below(len(SHAPES), SOLIDS), -1)
    size = draws.uniform(0.4, 0.65, SOLIDS)
    size[:, :1] = draws.uniform(0.85, 1.15, 1)
    angle = draws.uniform(0, 2 * np.pi, 1) + np.cumsum(draws.uniform(1.7, 2.6, SOLIDS), axis=1)
    reach = size * _RADII[shape]
    away = (reach + reach[:, :1]) * draws.uniform(1.0, 1.35, SOLIDS)
    away[:, 0] = 0
    centre = np.stack([away * np.cos(angle), away * np.sin(angle), -_FLOORS[shape] * size], axis=-1)
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


def _cameras(draws: _Draws) -> tuple[Floats, Floats]:
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
    draws: _Draws,
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
    own = _turned(np.moveaxis(scenes.axes[scene], 1, 0) / size[:, None], cosine, sine)
    origin = [part[pair] for part in _turned(-offset / size[:, None], cosine, sine)]
    right, up = RIGHT[ray], UP[ray]
    direction = [part[2][pair] + part[0][pair] * right + part[1][pair] * up for part in own]
    depth, plane = _meet(shape, origin, direction)
    met = np.flatnonzero(depth < NOTHING)
    depth, pair, ray = depth[met], pair[met], ray[met]
    place = [o[met] + depth * d[met] for o, d in zip(origin, direction, strict=True)]
    normal = _normal(shape, place, plane[met])
    light = [part[pair] for part in _turned(scenes.light[scene], cosine, sine)]
    lit = np.maximum(sum(n * towards for n, towards in zip(normal, light, strict=True)), 0)
    return _Hits(scene[pair], slot[pair], ray, depth, lit, normal[2], place[2])


def _turned(vectors: Floats, cosine: Floats, sine: Floats) -> list[Floats]:
    """Components of vectors (..., P, 3) in coordinates that are turned about the vertical."""
    x, y, z = (vectors[..., k] for k in range(3))
    return [cosine * x + sine * y, cosine * y - sine * x, z]


def _meet(shape: Shape, origin: list[Floats], direction: list[Floats]) -> tuple[Floats, Integers]:
    """Where rays enter a solid, in its own coordinates.

    Args:
        shape: the solid.
        origin: three (H,), outside of the solid.
        direction: three (H,), of any length.

    Returns:
        (H,) parameter of the ray, infinite where it misses or would have to go back; and (H,)
        number of the plane that is entered through, -1 for the curved surface.
    """
    if shape.torus is not None:
        return _meet_torus(shape.radius, shape.torus, origin, direction)
    enter = np.full_like(origin[0], -NOTHING)
    leave = np.full_like(origin[0], NOTHING)
    plane = np.full(len(enter), -1)
    if shape.quadric is not None:
        enter, leave = _meet_quadric(shape.quadric, origin, direction)
    for number, (*normal, distance) in enumerate(shape.planes):
        slope, gap = np.zeros_like(enter), np.full_like(enter, distance)
        for factor, start, step in zip(normal, origin, direction, strict=True):
            if factor:
                slope += np.float32(factor) * step
                gap -= np.float32(factor) * start
        crossing = gap / slope
        inwards = slope < 0
        later = inwards & (crossing > enter)
        enter[later], plane[later] = crossing[later], number
        leave = np.where(inwards, leave, np.minimum(leave, crossing))
        leave[(slope == 0) & (gap < 0)] = -NOTHING
    return np.where((enter < leave) & (enter > 0), enter, NOTHING), plane


def _meet_quadric(
    quadric: tuple[float, float, float], origin: list[Floats], direction: list[Floats]
) -> tuple[Floats, Floats]:
    """Where rays enter and leave a quadric about the z axis; of a cone, its lower half."""
    squeeze, middle, level = map(np.float32, quadric)
    x, y, z = origin[0], origin[1], origin[2] - middle
    dx, dy, dz = direction
    a = dx * dx + dy * dy + squeeze * dz * dz
    b = x * dx + y * dy + squeeze * z * dz
    c = x * x + y * y + squeeze * z * z - level
    discriminant = b * b - a * c
    root = np.sqrt(discriminant)
    first, second = (-b - root) / a, (-b + root) / a
    missed = ~(discriminant > 0)
    first[missed], second[missed] = NOTHING, -NOTHING
    if squeeze < 0:  # a ray steeper than the cone stays in its lower half, or comes from there
        steep = (a < 0) & ~missed
        leave = np.where(steep & (dz < 0), NOTHING, second)
        first = np.where(steep, np.where(dz < 0, first, -NOTHING), first)
        return first, leave
    return first, second


def _meet_torus(
    radius: float, torus: tuple[float, float], origin: list[Floats], direction: list[Floats]
) -> tuple[Floats, Integers]:
    """Sphere tracing (Hart 1996) from the bounding sphere on; rays that have ended drop out."""
    speed = np.sqrt(sum(d * d for d in direction))
    away = -sum(o * d for o, d in zip(origin, direction, strict=True)) / speed
    depth = np.full_like(speed, NOTHING)
    short = away - np.sqrt(radius**2 - sum(o * o for o in origin) + away * away)
    alive = np.flatnonzero(away > 0)
    travelled = np.maximum(short[alive], 0)
    begin = [o[alive] for o in origin]
    step = [d[alive] / speed[alive] for d in direction]
    for _ in range(40):
        x, y, z = (o + travelled * d for o, d in zip(begin, step, strict=True))
        gap = np.hypot(np.hypot(x, y) - np.float32(torus[0]), z) - np.float32(torus[1])
        near = gap < 1e-3
        depth[alive[near]] = travelled[near] / speed[alive[near]]
        going = ~near & (travelled < away[alive] + radius)
        alive, travelled = alive[going], (travelled + gap)[going]
        begin, step = [o[going] for o in begin], [d[going] for d in step]
        if not len(alive):
            break
    return depth, np.full(len(depth), -1)


def _normal(shape: Shape, place: list[Floats], plane: Integers) -> list[Floats]:
    """Outward unit normals at (H,) points of the surface."""
    x, y, z = place
    if shape.torus is not None:
        ring = np.hypot(x, y)
        flat = (1 - np.float32(shape.torus[0]) / ring) / np.float32(shape.torus[1])
        return [x * flat, y * flat, z / np.float32(shape.torus[1])]
    flat = [table[plane] for table in np.array(shape.planes, np.float32).T[:3]]
    if shape.quadric is None:
        return flat
    squeeze, middle, _ = map(np.float32, shape.quadric)
    curved = [x, y, squeeze * (z - middle)]
    length = np.sqrt(curved[0] ** 2 + curved[1] ** 2 + curved[2] ** 2)
    curved = [part / length for part in curved]
    if not shape.planes:
        return curved
    return [np.where(plane < 0, c, f) for c, f in zip(curved, flat, strict=True)]


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
        towards = [part[pair] for part in _turned(light / size[:, None], cosine, sine)]
        start = np.stack([part[pair, ray] for part in offset], axis=1) / size[pair, None]
        depth, _ = _meet(shape, _turned(start, cosine[pair], sine[pair]), towards)
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
