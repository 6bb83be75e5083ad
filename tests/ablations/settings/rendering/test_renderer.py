"""Rendered scenes against geometry worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import pytest

from ablations.settings.rendering.composition import Scenes, draw_scenes
from ablations.settings.rendering.renderer import HALF_VIEW, SIZE, render
from ablations.settings.rendering.solids import SEGMENTS, SHAPES

Floats = npt.NDArray[np.float64]


def staged(*solids: tuple[str, float, tuple[float, float, float]]) -> Scenes:
    """One scene of (shape, size, centre) before a camera that looks down by 0.6 radians."""
    scene = draw_scenes([0])
    shape = np.full((1, 3), -1)
    size, centre = scene.size.copy(), scene.centre.copy()
    for slot, (name, scale, place) in enumerate(solids):
        shape[0, slot], size[0, slot] = SHAPES.index(name), scale
        centre[0, slot] = place
    cosine, sine = np.cos(0.6), np.sin(0.6)
    axes = [[[0, -1, 0], [sine, 0, cosine], [cosine, 0, -sine]]]
    return replace(
        scene,
        shape=shape,
        size=size,
        centre=centre,
        yaw=np.zeros_like(scene.yaw),
        eye=np.float32([[-6, 0, 5]]),
        axes=np.array(axes, np.float32),
    )


def rays(scene: Scenes) -> tuple[Floats, Floats]:
    """The eye, and (32, 32, 3) directions through the pixels' centres with unit depth."""
    pixels = HALF_VIEW * ((np.arange(SIZE) + 0.5) * 2 / SIZE - 1)
    right, up, forward = scene.axes[0].astype(np.float64)
    directions = forward + pixels[None, :, None] * right - pixels[:, None, None] * up
    return scene.eye[0].astype(np.float64), directions


def test_the_depth_of_the_ground_is_that_of_a_plane() -> None:
    scene = staged()
    eye, directions = rays(scene)
    seen = render(scene)
    np.testing.assert_allclose(seen.depth[0], -eye[2] / directions[..., 2], rtol=1e-5)
    assert not seen.segments.any()


def test_a_sphere_has_its_depth_and_its_silhouette() -> None:
    radius, place = 0.95 * 1.3, np.array([0.4, 0.3, 1.5])
    scene = staged(("sphere", 1.3, (0.4, 0.3, 1.5)))
    eye, directions = rays(scene)
    a = (directions**2).sum(-1)
    b = directions @ (eye - place)
    discriminant = b**2 - a * (((eye - place) ** 2).sum() - radius**2)
    hit = discriminant > 0
    seen = render(scene)
    np.testing.assert_array_equal(seen.segments[0], hit * SEGMENTS.index("sphere"))
    expected = (-b - np.sqrt(discriminant.clip(0))) / a
    np.testing.assert_allclose(seen.depth[0][hit], expected[hit], rtol=1e-4)
    assert 100 < hit.sum() < 500
    assert SHAPES[seen.classes[0]] == "sphere"


def inside(name: str, p: Floats) -> npt.NDArray[np.bool_]:
    """Whether points (..., 3) of a solid's own coordinates are in it."""
    x, y, z = np.moveaxis(p, -1, 0)
    flat = np.hypot(x, y)
    found: dict[str, npt.NDArray[np.bool_]] = {
        "sphere": flat**2 + z**2 <= 0.95**2,
        "dome": (flat**2 + z**2 <= 1.12**2) & (z >= 0),
        "cylinder": (flat <= 0.75) & (abs(z) <= 0.8),
        "cone": (flat <= 0.9 * (1.1 - z) / 1.85) & (z >= -0.75),
        "frustum": (flat <= 0.45 + (0.7 - z) * 0.5 / 1.4) & (abs(z) <= 0.7),
        "torus": (flat - 0.75) ** 2 + z**2 <= 0.32**2,
        "cube": (abs(p) <= 0.7).all(-1),
        "pyramid": (np.maximum(abs(x), abs(y)) <= 0.85 * (1 - z) / 1.6) & (z >= -0.6),
        "octahedron": abs(p).sum(-1) <= 1.1,
        "wedge": (abs(x) <= 0.8 * (0.8 - z) / 1.4) & (abs(y) <= 0.8) & (z >= -0.6),
    }
    return found[name]


@pytest.mark.parametrize("name", SHAPES)
def test_a_ray_ends_where_it_enters_the_solid(name: str) -> None:
    place = np.array([0.1, -0.2, 1.4])
    scene = staged((name, 1.1, (0.1, -0.2, 1.4)))
    eye, directions = rays(scene)
    steps = np.linspace(4.5, 10.5, 6001)
    points = eye + steps[:, None, None, None] * directions[None, ::3, ::3]
    within = inside(name, (points - place) / 1.1)
    met = within.any(0)
    entered = steps[within.argmax(0)]
    seen = render(scene)
    label = seen.segments[0, ::3, ::3] == SEGMENTS.index(name)
    assert (label != met).sum() <= 1  # a ray that grazes between two of the steps
    assert met.sum() > 10
    both = label & met
    np.testing.assert_allclose(seen.depth[0, ::3, ::3][both], entered[both], atol=0.04)


def test_what_is_nearer_hides_what_is_farther() -> None:
    back, front = ("cube", 1.0, (0.9, 0.0, 0.7)), ("sphere", 0.9, (-0.8, 0.0, 0.855))
    alone = [render(staged(solid)) for solid in (back, front)]
    both = render(staged(back, front))
    assert (alone[0].segments.astype(bool) & alone[1].segments.astype(bool)).any()
    depths = np.concatenate([part.depth for part in alone])
    np.testing.assert_array_equal(both.depth[0], depths.min(0))
    labels = np.concatenate([part.segments for part in alone])
    nearest = np.take_along_axis(labels, depths.argmin(0)[None], 0)
    np.testing.assert_array_equal(both.segments, nearest)


def test_two_solids_of_one_shape_hide_each_other_too() -> None:
    pair = ("cube", 1.0, (0.9, 0.0, 0.7)), ("cube", 0.9, (-0.8, 0.0, 0.63))
    depths = np.concatenate([render(staged(solid)).depth for solid in pair])
    np.testing.assert_array_equal(render(staged(*pair)).depth[0], depths.min(0))


def test_the_class_is_that_of_the_solid_seen_at_most_pixels() -> None:
    small, large = ("cone", 0.4, (-1.5, 0.8, 0.3)), ("cylinder", 1.1, (0.5, 0.0, 0.88))
    for solids in ((small, large), (large, small)):
        assert SHAPES[render(staged(*solids)).classes[0]] == "cylinder"
    seen = render(draw_scenes(range(300)))
    counts = np.stack([(seen.segments == k).sum((1, 2)) for k in range(1, len(SEGMENTS))], 1)
    single = draw_scenes(range(300)).shape[:, 1] < 0
    np.testing.assert_array_equal(seen.classes[single], counts.argmax(1)[single])
    assert counts[np.arange(300), seen.classes].min() >= 20


def test_a_sphere_is_bright_towards_the_light_and_its_shadow_falls_behind_it() -> None:
    scene = staged(("sphere", 1.0, (0.0, 0.0, 0.95)))
    left = np.float32([[0, np.sin(0.9), np.cos(0.9)]])
    scene = replace(scene, light=left, tiles=0 * scene.tiles, texture=0 * scene.texture)
    seen = render(scene)
    ball = seen.segments[0] == SEGMENTS.index("sphere")
    brightness = seen.images[0].astype(float).sum(0)
    columns = np.nonzero(ball)[1]
    middle = columns.mean()
    there, across = np.nonzero(ball)
    lit = brightness[there, across]
    assert lit[across < middle].mean() > 1.2 * lit[across > middle].mean()
    ground = np.where(ball, np.nan, brightness)
    shadow = ground < 0.7 * np.nanmax(ground)
    assert shadow.sum() > 20
    assert np.nonzero(shadow)[1].mean() > middle + 3


def test_a_scene_depends_on_its_seed_alone() -> None:
    whole = render(draw_scenes(range(200, 300)))
    part = render(draw_scenes([297, 203]))
    for field in fields(whole):
        ours, theirs = getattr(part, field.name), getattr(whole, field.name)[[97, 3]]
        np.testing.assert_array_equal(ours, theirs)
    assert (whole.images[0] != whole.images[1]).any()
    with pytest.raises(ValueError, match="negative"):
        draw_scenes([3, -1])


def test_scenes_hold_one_to_three_solids_of_every_class_evenly() -> None:
    scenes = draw_scenes(range(20_000))
    solids = (scenes.shape >= 0).sum(1)
    np.testing.assert_allclose(np.bincount(solids) / 20_000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)
    np.testing.assert_allclose(np.bincount(scenes.shape[:, 0]) / 20_000, [0.1] * 10, atol=0.01)


def test_images_labels_and_depth_are_whole() -> None:
    seen = render(draw_scenes(range(64)))
    assert seen.images.shape == (64, 3, 32, 32)
    assert seen.images.dtype == seen.segments.dtype == np.uint8
    assert seen.depth.dtype == np.float32
    assert np.isfinite(seen.depth).all()
    assert 3 < seen.depth.min() < seen.depth.max() < 25
    assert len(render(draw_scenes([]))) == 0
