"""What the figures show, read off the matplotlib objects; their bytes only for size and form."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from reports.figures import (
    MAX_PNG_BYTES,
    noise_accuracy_figure,
    png,
    samples_figure,
    tradeoff_figure,
)
from reports.records import Records
from reports.styles import styles
from tests.reports.conftest import (
    LABELS,
    METHODS,
    grid,
    noise_accuracy,
    row,
    sweep,
    tradeoff,
    write_folder,
)

FIGURES = [noise_accuracy_figure, tradeoff_figure, samples_figure]


@pytest.fixture
def records(folder: Path) -> Records:
    return Records.read(folder)


def curves(axes: Axes) -> dict[str, np.ndarray]:
    """(n, 2) points of every line of the facet that is a method's, by its colour."""
    colours = {look.colour.lower() for look in styles(list(METHODS)).values()}
    drawn = {to_hex(line.get_color()): np.asarray(line.get_xydata()) for line in axes.lines}
    return {colour: points for colour, points in drawn.items() if colour in colours}


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def colour(method: str) -> str:
    return styles(list(METHODS))[method].colour.lower()


def test_every_method_looks_different() -> None:
    looks = styles([*METHODS, "ppap, shared start", "another", "a third"]).values()
    assert len({look.colour for look in looks}) == len({look.dash for look in looks}) == 8
    assert len({look.marker for look in looks}) == 8


def test_noise_accuracy_has_a_facet_per_predictor_and_a_line_per_model(records: Records) -> None:
    figure = noise_accuracy_figure(records)
    assert titles(figure) == ["resnet", "vit"]
    guided = {colour(method) for method in METHODS if method != "unguided"}
    assert all(set(curves(axes)) == guided for axes in figure.axes)


def test_noise_accuracy_line_is_the_mean_over_seeds(records: Records) -> None:
    per_seed = [noise_accuracy("ppap", "resnet", seed) for seed in range(3)]
    mean = np.mean([record["accuracy"] for record in per_seed], axis=0)
    line = curves(noise_accuracy_figure(records).axes[0])[colour("ppap")]
    np.testing.assert_allclose(line, np.stack([per_seed[0]["timesteps"], mean], axis=1))


def test_noise_accuracy_band_spans_the_seeds(records: Records) -> None:
    axes = noise_accuracy_figure(records).axes[0]
    last = [noise_accuracy("ppap", "resnet", seed)["accuracy"][-1] for seed in range(3)]
    bands = {to_hex(np.asarray(band.get_facecolor())[0]): band for band in axes.collections}
    corners = np.asarray(bands[colour("ppap")].get_paths()[0].vertices)
    edge = corners[corners[:, 0] == 950, 1]
    np.testing.assert_allclose([edge.min(), edge.max()], [min(last), max(last)])


def test_noise_accuracy_bounds_the_five_ranges(records: Records) -> None:
    for axes in noise_accuracy_figure(records).axes:
        lines = [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines]
        bounds = [x[0] for x in lines if len(x) == 2 and x[0] == x[1]]
        assert bounds == [0, 200, 400, 600, 800, 1000]


def test_tradeoff_joins_the_scales_of_a_method_in_order(records: Records) -> None:
    figure = tradeoff_figure(records)
    assert titles(figure) == ["resnet", "vit"]
    scales = (0.5, 1.0, 3.0, 6.0, 10.0)
    pairs = [[tradeoff("single", "vit", scale, seed) for seed in (100, 101)] for scale in scales]
    expected = [[np.mean([r[k] for r in pair]) for k in ("accuracy", "fid")] for pair in pairs]
    np.testing.assert_allclose(curves(figure.axes[1])[colour("single")], expected)


def test_tradeoff_shows_the_unguided_point_in_every_facet(records: Records) -> None:
    for axes in tradeoff_figure(records).axes:
        assert set(curves(axes)) == {colour(method) for method in METHODS}
        assert len(curves(axes)[colour("unguided")]) == 1


def test_tradeoff_points_are_annotated_by_scale(records: Records) -> None:
    for axes in tradeoff_figure(records).axes:
        notes = sorted(text.get_text() for text in axes.texts)
        assert notes == sorted([*("0.5", "1", "3", "6", "10") * 4, "unguided"])


@pytest.mark.parametrize(("worst", "expected"), [(30.0, "linear"), (300.0, "log")])
def test_tradeoff_takes_logarithms_of_a_wide_range(
    tmp_path: Path, worst: float, expected: str
) -> None:
    points = [tradeoff("ppap", "vit", 1.0), tradeoff("ppap", "vit", 9.0) | {"fid": worst}]
    figure = tradeoff_figure(Records.read(write_folder(tmp_path, points)))
    assert figure.axes[0].get_yscale() == expected


def test_samples_has_a_block_per_method_and_predictor(records: Records) -> None:
    figure = samples_figure(records)
    blocks = [title.split("\n")[0] for title in titles(figure)]
    assert blocks == list(METHODS) * 2
    assert titles(figure)[4] == "ppap\nscale 3"
    assert [text.get_text() for text in figure.texts] == ["resnet", "vit"]
    labelled = [axes for axes in figure.axes if axes.get_yticklabels()]
    assert len(labelled) == 2
    assert all([t.get_text() for t in axes.get_yticklabels()] == LABELS for axes in labelled)


def test_samples_shows_the_recorded_pixels(records: Records) -> None:
    shown = np.asarray(samples_figure(records).axes[0].images[0].get_array())
    images = records.grids[0].images
    assert records.grids[0].method == "unguided"
    np.testing.assert_array_equal(shown[:32, :32], images[0, 0])
    np.testing.assert_array_equal(shown[33:65, 66:98], images[1, 2])


def test_many_methods_are_shown_in_rows_so_that_no_word_is_cut(tmp_path: Path) -> None:
    names = [f"particles {number} + experts" for number in range(19)]
    grids = [grid(name, "vit") | {"scale": 12.3457} for name in names]
    figure = samples_figure(Records.read(write_folder(tmp_path, grids)))
    assert len(figure.axes) == len(names)
    whole = {"particles", "+", "experts", "scale", "12.3457", *map(str, range(19))}
    assert {word for title in titles(figure) for word in title.split()} == whole
    tops = [round(axes.get_position().y1, 6) for axes in figure.axes]
    assert len(set(tops)) > 1
    assert figure.texts[0].get_text() == "vit"


def test_samples_that_were_chosen_by_their_score_say_so(tmp_path: Path) -> None:
    chosen = grid("ppap", "vit") | {"scale": 8.0, "score": 0.9041}
    records = Records.read(write_folder(tmp_path, [chosen]))
    assert records.grids[0].scale_text == "scale 8, score 0.904"
    assert "score 0.904" in samples_figure(records).axes[0].get_title()


def test_samples_may_be_in_colour(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [grid("ppap", "vit")])
    images = np.random.default_rng(1).integers(0, 256, (10, 2, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "grids.npz", **{"ppap/vit": images})  # type: ignore[arg-type]
    shown = np.asarray(samples_figure(Records.read(folder)).axes[0].images[0].get_array())
    zoom = shown.shape[0] // 90
    assert shown.shape == (90 * zoom, 18 * zoom, 3)
    np.testing.assert_array_equal(shown[::zoom, ::zoom][9:17, 9:17], images[1, 1])


def test_a_method_keeps_its_colour_when_others_are_absent(tmp_path: Path) -> None:
    extra = {"method": "ppap, shared start", "key": "extra"}
    other = {"method": "a method of others", "key": "other"}
    lines = [row("ppap", "vit") | other, row("ppap", "vit") | extra, tradeoff("ppap", "vit", 1.0)]
    drawn = Records.read(write_folder(tmp_path, [*lines, tradeoff("ppap", "vit", 1.0) | extra]))
    look = styles(drawn.methods)["ppap, shared start"]
    shown = {to_hex(line.get_color()) for line in tradeoff_figure(drawn).axes[0].lines}
    assert shown == {look.colour.lower(), colour("ppap")}


@pytest.mark.parametrize("draw", FIGURES)
def test_png_is_small_plain_and_the_same_twice(folder: Path, draw: object) -> None:
    assert callable(draw)
    once, again = (png(draw(Records.read(folder))) for _ in range(2))
    assert once == again
    assert len(once) < MAX_PNG_BYTES
    with Image.open(io.BytesIO(once)) as picture:
        assert picture.format == "PNG"
        assert picture.info.keys() <= {"transparency"}, "no date, no software"
        assert min(picture.size) > 300
        assert len(picture.getcolors() or []) > 20


def test_figures_of_one_predictor_have_one_facet(tmp_path: Path) -> None:
    only = [record for record in sweep() if record["predictor"] != "vit"]
    records = Records.read(write_folder(tmp_path, only))
    assert titles(noise_accuracy_figure(records)) == titles(tradeoff_figure(records)) == ["resnet"]
    assert len(samples_figure(records).axes) == 5


def ringed(axes: Axes) -> int:
    """How many points are ringed: drawn without a face."""
    rings = [found for found in axes.collections if not np.asarray(found.get_facecolor()).size]
    return sum(len(np.asarray(found.get_offsets())) for found in rings)


@pytest.mark.parametrize("told", [{}, {"sampler": "ddim25"}])
def test_the_scale_that_is_ringed_is_that_of_the_points_sampler(
    tmp_path: Path, told: dict[str, str]
) -> None:
    points = [tradeoff("ppap", "vit", scale) | told for scale in (1.0, 3.0, 6.0)]
    ancestral = row("ppap", "vit", scale=6.0, sampler="250") | {"key": "ancestral"}
    lines = [ancestral, row("ppap", "vit", scale=3.0), *points]
    (axes,) = tradeoff_figure(Records.read(write_folder(tmp_path, lines))).axes
    assert ringed(axes) == 1


def test_a_sampler_has_a_facet_of_its_own(tmp_path: Path) -> None:
    points = [
        tradeoff("ppap", "vit", scale) | {"sampler": sampler, "key": f"{sampler}-{scale}"}
        for sampler in ("ddim25", "250")
        for scale in (1.0, 3.0)
    ]
    records = Records.read(write_folder(tmp_path, points))
    assert len(records.tradeoff) == 4
    figure = tradeoff_figure(records)
    assert titles(figure) == ["vit, ddim25", "vit, 250"]
    assert [len(axes.texts) for axes in figure.axes] == [2, 2]


def test_no_title_or_label_of_a_picture_is_cut(tmp_path: Path) -> None:
    wordy = grid("ppap", "vit") | {"labels": [f"a label of many words {k}" for k in range(10)]}
    longer = {"method": "a method with a name that is far too long for its block"}
    others = [grid("ppap", "vit") | longer | {"key": str(k), "array": f"a{k}"} for k in range(3)]
    figure = samples_figure(Records.read(write_folder(tmp_path, [wordy, *others])))
    figure.draw_without_rendering()
    for axes in figure.axes:
        box, block = axes.title.get_window_extent(), axes.get_window_extent()
        assert box.width <= block.width + 14, "it stays above its own block"
        assert box.y1 <= figure.canvas.get_width_height()[1]
        for label in axes.get_yticklabels():
            assert label.get_window_extent().x0 >= 0


@pytest.mark.parametrize("predictor", ["vit", "segmentation", "semantic segmentation"])
def test_the_name_of_what_guides_ends_before_the_first_title(
    predictor: str, tmp_path: Path
) -> None:
    more = [grid(str(number), predictor) for number in range(7)]
    grids = [grid("unguided", predictor), *more]
    figure = samples_figure(Records.read(write_folder(tmp_path, grids)))
    figure.draw_without_rendering()
    (name,) = figure.texts
    assert name.get_text() == predictor
    assert name.get_window_extent().x1 < figure.axes[0].title.get_window_extent().x0
