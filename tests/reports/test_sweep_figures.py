"""Figures of sweeps draw the rows' numbers, and the Pareto front is the front."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from reports.build import build
from reports.drawings import drawings
from reports.figures import png, svg
from reports.records import Records
from reports.sweep_figures import front, lines_figure, pareto_figure, points_figure
from tests.reports.conftest import Record, curve, info, row, write_folder


def arm(name: str, predictor: str = "resnet", **changes: object) -> Record:
    named = {"sweep": "experts", "method": name, "key": f"{name}-{predictor}"}
    return row("ppap", predictor) | named | changes


def read(tmp_path: Path, axes: dict[str, str], *rows: Record) -> Records:
    return Records.read(write_folder(tmp_path, [info("experts", axes), *rows]))


def test_a_line_for_each_value_of_the_second_axis(tmp_path: Path) -> None:
    rows = [
        arm(f"{n} {kind}", axes={"experts": n, "kind": kind}, accuracy=0.5 + n / 100)
        for kind in ("labelled", "data-free")
        for n in (10, 1, 5)
    ]
    figure = lines_figure(read(tmp_path, {"experts": "log", "kind": "category"}, *rows))
    accuracy, fid = figure.axes
    assert accuracy.get_ylabel() == "accuracy ↑"
    assert fid.get_ylabel() == "FID ↓"
    assert [line.get_label() for line in accuracy.lines] == ["labelled", "data-free"]
    assert list(accuracy.lines[0].get_xdata()) == [1, 5, 10]
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0.51, 0.55, 0.6])
    assert accuracy.get_xscale() == "log"


def test_what_differs_in_a_third_axis_or_its_sampler_is_on_another_line(tmp_path: Path) -> None:
    rows = [
        arm(f"{n} {kind} {norm} {sampler}", sampler=sampler,
            axes={"experts": n, "kind": kind, "norm": norm})
        for kind in ("full", "LoRA")
        for norm in ("own", "shared")
        for sampler in ("ddim25", "ddpm250")
        for n in (1, 5)
    ]  # fmt: skip
    axes = {"experts": "log", "kind": "category", "norm": "category"}
    figure = lines_figure(read(tmp_path, axes, *rows))
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1, 5]] * 8
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts][:3] == [
        "full, own, ddim25", "full, own, ddpm250", "full, shared, ddim25",
    ]  # fmt: skip


def test_a_row_without_the_second_axis_has_a_line_that_says_so(tmp_path: Path) -> None:
    rows = [arm(f"{n}", axes={"experts": n, "kind": "_LoRA"}) for n in (1, 5)]
    rows += [arm("naive", axes={"experts": 1}), arm("unguided", axes={})]
    axes = {"experts": "log", "kind": "category"}
    figure = lines_figure(read(tmp_path, axes, *rows))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["_LoRA", "no kind"]


def test_a_dollar_in_a_name_begins_no_formula(tmp_path: Path) -> None:
    name = "$\\frac$"
    rows = [arm(f"{name} {n}", axes={"n": n, "kind": f"{name} {n}"}) for n in (1, 2)]
    found = read(tmp_path, {"n": "log", "kind": "category"}, *rows)
    for draw in (lines_figure, points_figure):
        figure = draw(found)
        assert name in svg(figure).decode()
        assert png(figure)


@pytest.mark.parametrize("draw", [lines_figure, pareto_figure])
def test_no_two_of_many_values_look_alike(
    draw: Callable[[Records], Figure], tmp_path: Path
) -> None:
    rows = [
        arm(f"{n} {kind}", axes={"kind": f"kind {kind}", "n": n}, trainable_share=0.1 * n)
        for kind in range(20)
        for n in (1, 2)
    ]
    figure = draw(read(tmp_path, {"kind": "category", "n": "linear"}, *rows))
    (legend,) = figure.legends
    looks = {(line.get_marker(), line.get_color()) for line in legend.get_lines()}
    drawn = {(line.get_marker(), line.get_color()) for line in figure.axes[0].lines}
    assert len(looks) == len(legend.texts) == 20
    assert looks <= drawn


def test_a_row_of_facets_for_each_predictor(tmp_path: Path) -> None:
    rows = [arm(f"{n}", p, axes={"steps": n}) for n in (1, 2) for p in ("resnet-4", "resnet-8")]
    figure = lines_figure(read(tmp_path, {"steps": "linear"}, *rows))
    assert [axes.get_title() for axes in figure.axes] == ["resnet-4"] * 2 + ["resnet-8"] * 2


def test_points_stand_at_their_values_and_the_reference_is_hollow(tmp_path: Path) -> None:
    rows = [arm("a", accuracy=0.7, reference=True), arm("b", accuracy=0.8)]
    axes = points_figure(read(tmp_path, {"arm": "category"}, *rows)).axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [point.get_xdata()[0] for point in points] == [0.7, 0.8]  # type: ignore[index]
    assert [point.get_markerfacecolor() == "white" for point in points] == [True, False]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_a_row_without_a_sampler_is_called_by_its_name_alone(tmp_path: Path) -> None:
    rows = [arm(name, sampler=name) for name in ("ddim25", "ddpm250")] + [arm("weighed")]
    del rows[2]["sampler"]
    axes = points_figure(read(tmp_path, {"arm": "category"}, *rows)).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["ddim25, ddim25", "ddpm250, ddpm250", "weighed"]


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_no_point_beats(higher: bool) -> None:
    draw = np.random.default_rng(0)
    costs, qualities = draw.integers(0, 12, (2, 60)).astype(float)
    qualities[::9] = math.nan

    def beaten(i: int) -> bool:
        sign = 1 if higher else -1
        return any(
            costs[j] <= costs[i]
            and sign * qualities[j] >= sign * qualities[i]
            and (costs[j] < costs[i] or sign * qualities[j] > sign * qualities[i])
            for j in range(60)
        )

    expected = {
        (costs[i], qualities[i])
        for i in range(60)
        if not math.isnan(qualities[i]) and not beaten(i)
    }
    found = front(list(costs), list(qualities), higher)
    assert {(costs[i], qualities[i]) for i in found} == expected
    assert len(found) == len(expected)
    assert all(costs[a] < costs[b] for a, b in itertools.pairwise(found))


def test_a_pareto_figure_has_a_facet_for_each_cost_and_quality(tmp_path: Path) -> None:
    rows = [
        arm(name, axes={"norm": "with"}, trainable_share=share, train_seconds=share * 100)
        for name, share in (("bias", 0.01), ("LoRA", 0.2), ("full", 1.0))
    ]
    figure = pareto_figure(read(tmp_path, {"norm": "category"}, *rows))
    assert len(figure.axes) == 6
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert labels == {"trained share", "training s ↓", "peak MiB ↓"}


def test_a_front_is_of_one_predictor(tmp_path: Path) -> None:
    """What guides towards a map is no rival of what guides towards a class, and has no accuracy."""
    dense = {"pixel_error": 0.1, "depth_rmse": 0.2}
    rows = [
        arm(name, predictor, axes={"guide": "experts"}, seconds_per_image=seconds, **dense)
        for predictor in ("resnet", "segmentation", "all three")
        for name, seconds in (("quick", 0.01), ("dps + experts on x_t", 0.4))
    ]
    metrics = ("accuracy", "fid", "seconds_per_image", *dense)
    about = info("experts", {"guide": "category"}, metrics) | {"figure": "pareto"}
    figure = pareto_figure(Records.read(write_folder(tmp_path, [about, *rows])))
    found = [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
    assert sorted(found) == [
        ("all three", "accuracy ↑"), ("all three", "depth error ↓"), ("all three", "pixel error ↓"),
        ("resnet", "FID ↓"), ("resnet", "accuracy ↑"), ("segmentation", "pixel error ↓"),
    ]  # fmt: skip
    for axes in figure.axes:
        points = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
        assert [list(line.get_xdata()) for line in points] == [[0.01, 0.4]]
        assert not axes.get_xticklabels(minor=True)


@pytest.mark.parametrize(("known", "cost"), [(2, "times unguided ↓"), (1, "s/image ↓")])
def test_time_is_drawn_relative_where_every_row_has_it(
    known: int, cost: str, tmp_path: Path
) -> None:
    timed = [{"seconds_per_image": 0.1 * n, "relative_seconds": float(n)} for n in (1, 2)]
    if known < len(timed):
        del timed[-1]["relative_seconds"]
    rows = [
        arm(f"{n}", axes={"guide": "experts"}, **figures)
        for n, figures in enumerate(timed, start=1)
    ]
    metrics = ("accuracy", "relative_seconds", "seconds_per_image")
    about = info("experts", {"guide": "category"}, metrics) | {"figure": "pareto"}
    figure = pareto_figure(Records.read(write_folder(tmp_path, [about, *rows])))
    assert {axes.get_xlabel() for axes in figure.axes} == {cost}


@pytest.mark.parametrize(
    "rows",
    [
        [arm("unguided", "none", axes={"guide": "none"})],
        [arm("ppap", axes={"guide": "experts"}, seconds_per_image=math.nan)],
    ],
    ids=["nothing guides", "nothing is timed"],
)
def test_without_points_there_is_no_front_and_no_error(rows: list[Record], tmp_path: Path) -> None:
    about = info("experts", {"guide": "category"}, ("accuracy", "fid", "seconds_per_image"))
    folder = write_folder(tmp_path, [about | {"figure": "pareto"}, *rows])
    assert drawings(Records.read(folder)) == []


def test_a_sweep_whose_rows_are_missing_costs_no_other_sweep_its_reports(tmp_path: Path) -> None:
    """As where every row failed, and a curve did not."""
    about = info("experts", {"guide": "category"}) | {"figure": "pareto"}
    failed = curve("ppap") | {"sweep": "experts"}
    folder = write_folder(tmp_path, [about, failed, row("ppap", "vit")])
    written = {path.name for path in build(folder)}
    assert {"experts.md", "experts-curves.csv", "methods.csv", "index.html"} <= written
    assert not {"experts.csv", "experts.png"} & written


@pytest.mark.parametrize("figure", ["points", "lines"])
def test_a_sweep_of_metrics_that_no_figure_shows_has_a_table(figure: str, tmp_path: Path) -> None:
    about = info("experts", {"rank": "log"}, ("kid", "recall")) | {"figure": figure}
    folder = write_folder(tmp_path, [about, arm("1", axes={"rank": 1})])
    written = {path.name for path in build(folder)}
    assert "experts.csv" in written
    assert "experts.png" not in written


def test_lines_without_a_numeric_axis_are_points(tmp_path: Path) -> None:
    about = info("experts", {"kind": "category"}) | {"figure": "lines"}
    rows = [arm(kind, axes={"kind": kind}) for kind in ("LoRA", "bias")]
    (drawing,) = drawings(Records.read(write_folder(tmp_path, [about, *rows])))
    (first, *_) = drawing.draw().axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["LoRA", "bias"]


def test_vector_figures_are_the_same_twice(tmp_path: Path) -> None:
    rows = [arm(f"{n}", axes={"experts": n}) for n in (1, 5)]
    (drawing,), (again,) = (drawings(read(tmp_path, {"experts": "log"}, *rows)) for _ in range(2))
    assert drawing.svg == again.svg
    assert drawing.png == again.png
    assert b"<svg" in svg(drawing.draw())


def dense_arm(experts: int, task: str, **changes: object) -> Record:
    measured = {"depth_rmse": 0.1 / experts, "pixel_error": 0.2 / experts, "mean_iou": 0.5}
    axes = {"experts": experts, "task": task}
    return arm(f"{experts} experts", task, axes=axes, key=f"{experts}-{task}") | measured | changes


DENSE = ("depth_rmse", "mean_iou", "pixel_error", "accuracy", "fid")


def test_a_study_of_depth_and_segmentation_shows_their_errors(tmp_path: Path) -> None:
    """And has a figure, though its record of old names none."""
    about = info("experts", {"experts": "log", "task": "category"}, DENSE) | {"figure": "none"}
    rows = [dense_arm(n, task) for task in ("depth", "segmentation") for n in (1, 5)]
    records = Records.read(write_folder(tmp_path, [about, *rows]))
    (drawing,) = drawings(records)
    figure = drawing.draw()
    assert [axes.get_ylabel() for axes in figure.axes] == ["depth error ↓", "pixel error ↓"]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["depth", "segmentation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["depth", "segmentation"]


def test_where_a_class_is_asked_for_accuracy_is_shown_beside_the_errors(tmp_path: Path) -> None:
    rows = [dense_arm(1, task) for task in ("class", "depth")]
    about = info("experts", {"kind": "category"}, DENSE)
    figure = points_figure(Records.read(write_folder(tmp_path, [about, *rows])))
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "depth error ↓", "pixel error ↓", "accuracy ↑",
    ]  # fmt: skip


def test_a_sweep_of_what_is_not_quality_needs_no_figure(tmp_path: Path) -> None:
    about = info("experts", {"experts": "log"}, ("parameters", "disk_mib"))
    rows = [arm(f"{n}", axes={"experts": n}, disk_mib=float(n)) for n in (1, 5)]
    assert drawings(Records.read(write_folder(tmp_path, [about, *rows]))) == []


def test_colours_of_points_are_explained(tmp_path: Path) -> None:
    rows = [arm("unguided", "none"), arm("a", "resnet"), arm("a", "vit")]
    figure = points_figure(read(tmp_path, {"arm": "category"}, *rows))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["by resnet", "by vit"]
    drawn = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [handle.get_color() for handle in legend.legend_handles] == drawn[1:]  # type: ignore[union-attr]
    alone = points_figure(read(tmp_path, {"arm": "category"}, arm("a"), arm("b")))
    assert not alone.legends


def test_names_on_a_front_stay_within_their_frame(tmp_path: Path) -> None:
    rows = [
        arm(name, axes={"norm": "with"}, trainable_share=share, accuracy=0.5 + share / 3)
        for name, share in (("last layer", 0.01), ("LoRA", 0.2), ("everything there is", 1.0))
    ]
    figure = pareto_figure(read(tmp_path, {"norm": "category"}, *rows))
    figure.draw_without_rendering()
    for axes in figure.axes:
        frame = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
            assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
