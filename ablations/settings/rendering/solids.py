"""The ten solids of the scenes, and where rays meet them.

All but one are convex (half-spaces and at most one quadric) and intersected exactly; the torus is
intersected by sphere tracing. Everything here is in a solid's own coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FLOORS",
    "NOTHING",
    "RADII",
    "SEGMENTS",
    "SHAPES",
    "SOLID_SHAPES",
    "Floats",
    "Integers",
    "Shape",
    "intersect",
    "outward_normal",
    "turned",
]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

NOTHING = np.float32(np.inf)
"""Depth of a ray that meets no solid."""


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
RADII = np.array([shape.radius for shape in SOLID_SHAPES.values()], np.float32)
FLOORS = np.array([shape.floor for shape in SOLID_SHAPES.values()], np.float32)


def turned(vectors: Floats, cosine: Floats, sine: Floats) -> list[Floats]:
    """Components of vectors (..., P, 3) in coordinates that are turned about the vertical."""
    x, y, z = (vectors[..., k] for k in range(3))
    return [cosine * x + sine * y, cosine * y - sine * x, z]


def intersect(
    shape: Shape, origin: list[Floats], direction: list[Floats]
) -> tuple[Floats, Integers]:
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
        return _enter_torus(shape.radius, shape.torus, origin, direction)
    enter = np.full_like(origin[0], -NOTHING)
    leave = np.full_like(origin[0], NOTHING)
    plane = np.full(len(enter), -1)
    if shape.quadric is not None:
        enter, leave = _cross_quadric(shape.quadric, origin, direction)
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


def _cross_quadric(
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


def _enter_torus(
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


def outward_normal(shape: Shape, place: list[Floats], plane: Integers) -> list[Floats]:
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
