"""The three figures, each a pure function from records to a matplotlib figure.

A method has one colour, one dash and one marker in all of them (`styles`). Nothing here
touches pyplot's global state, so no display and no backend is needed.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns  # type: ignore[import-untyped]
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from reports.grids import Grid
from reports.records import NO_PREDICTOR, Records, method_rank
from reports.styles import Style, styles

__all__ = [
    "DPI",
    "draw_legend",
    "mosaic",
    "noise_accuracy_figure",
    "png",
    "samples_figure",
    "strip_figure",
    "svg",
    "theme",
    "tradeoff_figure",
]

DPI = 130
MAX_PNG_BYTES = 400_000
MOST_DRAWN_COLOURS = 4096
"""A figure of more colours holds pictures."""
SHEET = 1160
"""Pixels that the pictures of a band share."""
TITLE_LINE, TITLE_CHARACTER, LABEL_CHARACTER, NAME_CHARACTER = 18, 8.8, 8.4, 12.0
"""Pixels, at `DPI`, of text above and beside pictures; of a character, on average and with room."""
EXPERT_BOUNDS = (0, 200, 400, 600, 800, 1000)
VERBATIM = {"text.parse_math": False}
"""A dollar in a name is a dollar, and begins no formula."""


def noise_accuracy_figure(records: Records) -> Figure:
    """Accuracy on noisy real images against timestep: a facet per predictor, a line per model.

    Lines are means over seeds, bands reach from the lowest to the highest seed, and faint
    vertical lines bound the five experts' ranges. ``records.noise_accuracy`` is not empty.
    """
    data, looks = records.noise_accuracy, styles(records.methods)
    predictors = _predictors(data)
    with theme():
        figure, facets = _facets(len(predictors), share_y=True)
        for axes, predictor in zip(facets, predictors, strict=True):
            part = data[data["predictor"] == predictor]
            axes.grid(visible=False, axis="x")
            for bound in EXPERT_BOUNDS:
                axes.axvline(bound, color="0.83", linewidth=1, zorder=0.5)
            sns.lineplot(
                part,
                x="timestep",
                y="accuracy",
                **_mapping(part, looks),
                errorbar=("pi", 100),
                err_kws={"alpha": 0.18, "linewidth": 0},
                linewidth=1.7,
                legend=False,
                ax=axes,
            )
            axes.set(title=predictor, xlim=(0, 1000), xticks=EXPERT_BOUNDS, ylim=(0, 1))
            axes.set(xlabel="timestep (more noise →)", ylabel="accuracy on noisy images")
            axes.label_outer()
        draw_legend(figure, _present(data), looks, markers=False)
    return figure


def tradeoff_figure(records: Records) -> Figure:
    """Guided accuracy against FID over guidance scales: a facet per predictor.

    A point is a scale, averaged over seeds; the scale of the method's row in the table, where
    there is one, is ringed. Unguided sampling is drawn in every facet, and each sampler has facets
    of its own. FID is on a logarithmic axis if it spans more than a factor of five.
    ``records.tradeoff`` is not empty.
    """
    data, looks = records.tradeoff, styles(records.methods)
    which = ["predictor", "method", "sampler", "scale"]
    points = data.groupby(which, as_index=False)[["accuracy", "fid"]].mean().dropna()
    samplers = list(dict.fromkeys(data["sampler"]))
    panels = [(predictor, sampler) for sampler in samplers for predictor in _predictors(data)]
    with theme():
        figure, facets = _facets(len(panels), share_y=True)
        for axes, (predictor, sampler) in zip(facets, panels, strict=True):
            part = points[points["predictor"].isin([predictor, NO_PREDICTOR])]
            for method, line in part[part["sampler"] == sampler].groupby("method"):
                chosen = _chosen(records, str(method), predictor, sampler)
                _draw_scales(axes, line, str(method), looks, chosen)
            title = f"{predictor}, {sampler}" if len(samplers) > 1 else predictor
            axes.set(title=title, xlabel="guided accuracy (higher is better →)")
            axes.set(ylabel="FID (← lower is better)")
            axes.margins(0.1)
        if not points.empty and points["fid"].min() * 5 < points["fid"].max():
            facets[0].set_yscale("log")
            facets[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            facets[0].yaxis.set_major_formatter("{x:g}")
            facets[0].yaxis.set_minor_formatter(NullFormatter())
        for axes in facets:
            axes.label_outer()
        draw_legend(figure, _present(data), looks, markers=True)
    return figure


def samples_figure(records: Records) -> Figure:
    """Samples of every method: a band per predictor, a block per method.

    Columns of all blocks are the same seeds. Unguided samples open every band. Where blocks in a
    row would be too narrow for the words above them, a predictor has several bands.
    ``records.grids`` is not empty and its images are of one size.
    """
    height, width = records.grids[0].images.shape[2:4]
    fewest = min(grid.images.shape[1] for grid in records.grids)
    predictors: list[str] = []
    bands: list[list[Grid]] = []
    for name in _predictors(pd.DataFrame({"predictor": [g.predictor for g in records.grids]})):
        band = [grid for grid in records.grids if grid.predictor in (name, NO_PREDICTOR)]
        parts = _bands(band, fewest, width)
        bands += parts
        predictors += [name, *[NO_PREDICTOR] * (len(parts) - 1)]
    looks = styles(records.methods)
    blocks = max(map(len, bands))
    columns, zoom = _block_size(blocks, fewest, width)
    mosaics = [[mosaic(grid.images[:, :columns], zoom) for grid in band] for band in bands]

    titles = [[_block_title(grid, columns * (width + 1) * zoom) for grid in band] for band in bands]
    named = 8 + round(NAME_CHARACTER * max(map(len, predictors)))
    left, gap = max(_label_width([grid.labels for grid in records.grids]), named), 14
    top = 18 + TITLE_LINE * max(title.count("\n") + 1 for band in titles for title in band)
    block_width = columns * (width + 1) * zoom
    heights = [mosaic[0].shape[0] for mosaic in mosaics]
    total = np.array([left + blocks * (block_width + gap), sum(heights) + top * len(bands) + gap])
    with theme():
        figure = Figure(figsize=tuple(total / DPI), dpi=DPI)
        down = 0
        for number, (predictor, band) in enumerate(zip(predictors, bands, strict=True)):
            images, tall = mosaics[number], heights[number]
            down += top
            for place, (grid, image) in enumerate(zip(band, images, strict=True)):
                corner = (left + place * (block_width + gap), total[1] - down - tall)
                box = np.array([*corner, image.shape[1], tall]) / np.tile(total, 2)
                axes = figure.add_axes((box[0], box[1], box[2], box[3]))
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                look = looks[grid.method]
                axes.set_title(titles[number][place], color=look.colour, pad=4, fontsize=8.5)
                _label_classes(axes, grid.labels if not place else (), height, zoom)
            figure.text(
                8 / total[0],
                1 - (down - 8) / total[1],
                predictor if predictor != NO_PREDICTOR else "",
                weight="bold",
                va="baseline",
            )
            down += tall
    return figure


def strip_figure(records: Records) -> Figure:
    """Guided trajectories; the expert that guides each step is told above it and by a colour."""
    left = _label_width([strip.labels for strip in records.strips])
    top, between, wide = 50, 10, 1160
    pitch = max(strip.images.shape[1] * (strip.images.shape[3] + 1) for strip in records.strips)
    zoom = max(1, wide // pitch)
    mosaics = [mosaic(strip.images, zoom) for strip in records.strips]
    tall = sum(image.shape[0] + top for image in mosaics)
    total = np.array([left + pitch * zoom + between, tall + between])
    count = 1 + max(number or 0 for strip in records.strips for number in strip.experts)
    colours = sns.color_palette("viridis_r", count)
    with theme():
        figure, down = Figure(figsize=tuple(total / DPI), dpi=DPI), 0
        for strip, image in zip(records.strips, mosaics, strict=True):
            down += top + image.shape[0]
            box = np.array([left, total[1] - down, image.shape[1], image.shape[0]])
            place = box / np.tile(total, 2)
            axes = figure.add_axes((place[0], place[1], place[2], place[3]))
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            _label_classes(axes, strip.labels, strip.images.shape[2], zoom)
            each = (strip.images.shape[3] + 1) * zoom
            for number, (column, expert) in enumerate(
                zip(strip.columns, strip.experts, strict=True)
            ):
                middle = (number + 0.5) * each
                axes.text(middle, -28, column, ha="center", va="bottom", fontsize=8)
                if expert is not None:
                    axes.text(middle, -15, f"expert {expert}", ha="center", fontsize=7.5)
                    axes.add_patch(
                        Rectangle(
                            (number * each, -9), each, 7, color=colours[expert], clip_on=False
                        )
                    )
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG without metadata: equal figures give equal bytes.

    Colours of a drawing are cut to 256; if that is not enough, and those of pictures, as far as
    it takes to stay under `MAX_PNG_BYTES`.
    """
    drawn = io.BytesIO()
    with rc_context(VERBATIM):
        figure.savefig(drawn, format="png", dpi=DPI)
    picture = Image.open(drawn).convert("RGB")
    encoded = b""
    pictures = picture.getcolors(MOST_DRAWN_COLOURS) is None
    for colours in (*((None,) if pictures else ()), 256, 128, 64, 32, 16):
        buffer = io.BytesIO()
        reduced = picture
        if colours is not None:
            method = Image.Quantize.MEDIANCUT if pictures else Image.Quantize.MAXCOVERAGE
            reduced = picture.quantize(colours, method, dither=Image.Dither.NONE)
        reduced.save(buffer, format="png", optimize=True)
        encoded = buffer.getvalue()
        if len(encoded) < MAX_PNG_BYTES:
            break
    return encoded


def svg(figure: Figure) -> bytes:
    """The figure as SVG without metadata: equal figures give equal bytes."""
    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "ppap", "svg.fonttype": "none", **VERBATIM}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


@contextmanager
def theme() -> Iterator[None]:
    """How all figures look."""
    quiet = {"axes.edgecolor": "0.4", "grid.color": "0.93", "figure.facecolor": "white"}
    sizes = sns.plotting_context("notebook", font_scale=0.85, rc={"axes.linewidth": 0.8})
    with rc_context(VERBATIM), sns.axes_style("whitegrid", quiet), sizes:
        yield


def _predictors(frame: pd.DataFrame) -> list[str]:
    """The predictors, sorted; ``"none"`` only where there is no other."""
    return sorted(set(frame["predictor"]) - {NO_PREDICTOR}) or [NO_PREDICTOR]


def _present(frame: pd.DataFrame) -> list[str]:
    return sorted(set(frame["method"]), key=method_rank)


def _mapping(part: pd.DataFrame, looks: dict[str, Style]) -> dict[str, Any]:
    """Seaborn's arguments that give each method its colour and dash."""
    present = _present(part)
    return {
        "hue": "method",
        "hue_order": present,
        "palette": {name: looks[name].colour for name in present},
        "style": "method",
        "style_order": present,
        "dashes": {name: looks[name].dash or "" for name in present},
    }


def _facets(count: int, share_y: bool) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.2 + 4.3 * count + (1.3 if count == 1 else 0), 4.3), dpi=DPI)
    figure.set_layout_engine("constrained")
    facets = figure.subplots(1, count, squeeze=False, sharey=share_y)
    return figure, list(facets[0])


def draw_legend(figure: Figure, methods: list[str], looks: dict[str, Style], markers: bool) -> None:
    """Below the figure, how each method is drawn."""
    handles = []
    for name in methods:
        look = looks[name]
        line = Line2D([], [], color=look.colour, linewidth=1.7, label=name)
        line.set_linestyle((0, look.dash) if look.dash else "-")
        if markers:
            line.set_marker(look.marker)
        handles.append(line)
    # A name that is longer than its share of the width would be cut.
    longest = max(map(len, methods))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.7 + 0.085 * longest))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _chosen(records: Records, method: str, predictor: str, sampler: str) -> set[float]:
    """The scale of the method's row with this sampler, or if none is told, with its first one."""
    rows = records.rows
    if rows.empty:
        return set()
    rows = rows[(rows["method"] == method) & (rows["predictor"] == predictor)]
    samplers = rows["sampler"].fillna("")
    told = sampler or next(iter(samplers), "")
    return set(rows.loc[samplers == told, "scale"])


def _draw_scales(
    axes: Axes, line: pd.DataFrame, method: str, looks: dict[str, Style], chosen: set[float]
) -> None:
    look = looks[method]
    line = line.sort_values("scale")
    axes.plot(
        line["accuracy"],
        line["fid"],
        color=look.colour,
        linestyle=(0, look.dash) if look.dash else "-",
        linewidth=1.5,
        label=method,
    )
    size = 60 if method == "unguided" else 34
    axes.scatter(line["accuracy"], line["fid"], s=size, c=look.colour, marker=look.marker, zorder=4)
    ringed = line[line["scale"].isin(chosen)] if method != "unguided" else line[:0]
    axes.scatter(
        ringed["accuracy"], ringed["fid"], s=120, c="none", edgecolors=look.colour, zorder=5
    )
    for point in line.itertuples():
        axes.annotate(
            "unguided" if method == "unguided" else f"{point.scale:g}",
            (float(str(point.accuracy)), float(str(point.fid))),
            xytext=look.offset,
            textcoords="offset points",
            fontsize=7.5,
            color=look.colour,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )


def mosaic(images: npt.NDArray[np.uint8], zoom: int) -> npt.NDArray[np.uint8]:
    """(R, K, H, W[, 3]) tiles to one (R·(H+1)·zoom, K·(W+1)·zoom[, 3]) image, white between."""
    rows, columns = images.shape[:2]
    edges = [(0, 0), (0, 0), (0, 1), (0, 1)] + [(0, 0)] * (images.ndim - 4)
    tiles = np.pad(images, edges, constant_values=255).swapaxes(1, 2)
    sheet = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], *images.shape[4:])
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _block_size(blocks: int, fewest: int, width: int) -> tuple[int, int]:
    """Columns of each of some blocks in a band, and how many times larger pictures are shown."""
    columns = max(1, min(fewest, 8, SHEET // (blocks * (width + 1))))
    return columns, max(1, SHEET // (blocks * columns * (width + 1)))


def _bands(grids: list[Grid], fewest: int, width: int) -> list[list[Grid]]:
    """Blocks in as few rows as leave room for the longest word of a title above each."""
    words = {w for grid in grids for w in re.split("[ -]", f"{grid.method} {grid.scale_text}")}
    needed = TITLE_CHARACTER * max(map(len, words))
    length = len(grids)
    for rows in range(1, len(grids) + 1):
        length = math.ceil(len(grids) / rows)
        columns, zoom = _block_size(length, fewest, width)
        if columns * (width + 1) * zoom >= needed:
            break
    return [grids[start : start + length] for start in range(0, len(grids), length)]


def _block_title(grid: Grid, width: int) -> str:
    """Method and scale, in lines that are no wider than so many pixels."""
    lines = [
        textwrap.fill(part, max(1, int(width / TITLE_CHARACTER)))
        for part in (grid.method, grid.scale_text)
        if part
    ]
    return "\n".join(lines)


def _label_width(labels: Sequence[tuple[str, ...]]) -> int:
    """Pixels that the longest of some labels takes beside a picture."""
    return max(
        110, 18 + round(LABEL_CHARACTER * max(len(one) for names in labels for one in names))
    )


def _label_classes(axes: Axes, labels: tuple[str, ...], height: int, zoom: int) -> None:
    pitch = (height + 1) * zoom
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * pitch for row in range(len(labels))], labels)
    axes.tick_params(length=0, labelsize=8, pad=4)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
