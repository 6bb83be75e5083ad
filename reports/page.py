"""One self-contained page: tables to sort, figures, samples, and where each number is from."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from reports.drawings import Drawing, Report
from reports.figures import mosaic
from reports.grids import Grid
from reports.kernels import Sheet
from reports.provenance import provenance, row_name
from reports.published import published
from reports.records import Folder, Records
from reports.tables import Cell, Table, headline, legend

__all__ = ["MAX_BYTES", "page"]

MAX_BYTES = 5_000_000
GRID_PIXELS = 300
HERE = Path(__file__).parent
PUBLISHED_LINK = '<a href="#published">published</a>'
INTRODUCTION = (
    "Experts for noise ranges, trained without data, steer a diffusion model by an off-the-shelf "
    "predictor. Sort a table by its headers; click a row for where its numbers come from."
)


def page(reports: Sequence[Report], tables: Sequence[Sheet] = (), samples: bool = True) -> str:
    """HTML of everything that the folders hold; nothing in it is fetched from elsewhere.

    Args:
        reports: in the order shown.
        tables: of speed and of kernels, after them.
        samples: whether sample images are shown, which are most of a page's bytes.
    """
    folders = [report.folder for report in reports]
    links = [
        f'<a href="#{_anchor(folder)}">{escape(folder.setting)}, {escape(folder.budget)}</a>'
        for folder in folders
    ]
    links += [f'<a href="#{sheet.name}">{escape(sheet.name)}</a>' for sheet in tables]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>PPAP: ablations</title>",
            f"<style>\n{(HERE / 'page.css').read_text()}</style>\n</head>\n<body>",
            '<header class="top"><strong>PPAP</strong>',
            f'<nav aria-label="results">{" ".join([*links, PUBLISHED_LINK])}</nav>',
            '<button id="theme" type="button" aria-label="switch light and dark">◐</button>',
            "</header>\n<main>",
            "<h1>Plug-and-play diffusion guidance: ablations</h1>",
            f"<p>{INTRODUCTION}</p>",
            *(_folder(report, samples) for report in reports),
            *map(_sheet, tables),
            _published(),
            "</main>",
            '<dialog id="provenance" aria-labelledby="whose"><form method="dialog">',
            '<button>Close</button></form><h3 id="whose"></h3><dl></dl><h4>Configuration</h4>',
            "<pre></pre>",
            "</dialog>",
            f'<script type="application/json" id="records">{provenance(folders)}</script>',
            f"<script>\n{(HERE / 'page.js').read_text()}</script>\n</body>\n</html>\n",
        ]
    )


def _anchor(folder: Folder, sweep: str = "") -> str:
    return escape(f"{folder.setting}-{folder.budget}" + f"-{sweep}" * bool(sweep), quote=True)


def _folder(report: Report, samples: bool) -> str:
    folder = report.folder
    links = [
        f'<li><a href="#{_anchor(folder, records.sweep)}">{escape(records.info.title)}</a></li>'
        for records in folder.sweeps
    ]
    title = f"Setting {escape(folder.setting)}, budget {escape(folder.budget)}"
    parts = [f'<h2 id="{_anchor(folder)}">{title}</h2>']
    if folder.machines:
        parts.append(f'<p class="where">Seen on {escape("; ".join(folder.machines))}.</p>')
    parts.append(f'<ul class="sweeps">{"".join(links)}</ul>')
    if folder.failures:
        lines = [
            f"<li>{escape(failure.label)}: {escape(failure.reason)}"
            f"{escape('; missing: ' + ', '.join(failure.needed_by)) if failure.needed_by else ''}"
            "</li>"
            for failure in folder.failures
        ]
        parts.append(f'<div class="failures"><p>Failed:</p><ul>{"".join(lines)}</ul></div>')
    sweeps = zip(folder.sweeps, report.drawings, strict=True)
    return "\n".join([*parts, *(_sweep(folder, *sweep, samples) for sweep in sweeps)])


def _sweep(folder: Folder, records: Records, drawings: Sequence[Drawing], samples: bool) -> str:
    parts = [
        f'<section id="{_anchor(folder, records.sweep)}">',
        f"<h3>{escape(records.info.title)}</h3>",
        f"<p>{escape(records.info.description)}</p>",
    ]
    if not records.rows.empty:
        where = headline(records).replace("**", "").replace("`", "")
        meanings = "".join(f"<li>{escape(line)}</li>" for line in legend(records))
        parts += [
            f'<p class="where">{escape(where)}</p>',
            _table(folder, records),
            f"<details><summary>What the columns mean</summary><ul>{meanings}</ul></details>",
        ]
    # Samples are shown larger, below.
    parts += [_figure(drawing) for drawing in drawings if not drawing.name.endswith("-samples")]
    if records.grids and samples:
        parts.append(_grids(records.grids))
    elif records.grids:
        name = escape(f"{records.sweep}-samples.png")
        parts.append(f'<p class="hint">Samples are too many for this page: see {name}.</p>')
    return "\n".join([*parts, "</section>"])


def _figure(drawing: Drawing) -> str:
    caption = escape(drawing.caption, quote=True)
    return (
        f'<figure><div class="plate" tabindex="0" role="region" aria-label="{caption}">'
        f'<img class="plot" src="{_uri("image/svg+xml", drawing.svg)}" alt="{caption}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(folder: Folder, records: Records) -> str:
    table = Table.of(records)
    head = "".join(map(_head, table.header, table.words))
    body = []
    for key, line in zip(table.keys, table.lines, strict=True):
        name = escape(row_name(folder, key), quote=True)
        cells = [_cell(cell, word) for cell, word in zip(line[1:], table.words[1:], strict=True)]
        first = line[0]
        opened = (
            f'<td class="word" data-value="{escape(str(first.value), quote=True)}">'
            f'<button type="button" class="row">{escape(first.text)}</button></td>'
        )
        body.append(f'<tr data-key="{name}">{opened}{"".join(cells)}</tr>')
    caption = escape(records.info.title, quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _head(name: str, word: bool) -> str:
    kind = " class=word" * word
    button = f'<button type="button">{escape(name)}</button>'
    return f'<th scope="col"{kind} aria-sort="none">{button}</th>'


def _cell(cell: Cell, word: bool) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    interval = f" <small>{escape(cell.interval)}</small>" if cell.interval else ""
    value = escape(str(cell.value), quote=True)
    return f'<td{" class=word" * word} data-value="{value}">{text}{interval}</td>'


def _grids(grids: Iterable[Grid]) -> str:
    grids = list(grids)
    labels = grids[0].labels
    options = "".join(
        f'<option value="{place}">{escape(label)}</option>' for place, label in enumerate(labels)
    )
    blocks = []
    for grid in grids:
        drawn = io.BytesIO()
        picture = Image.fromarray(mosaic(grid.images, 1))
        if picture.mode == "RGB":  # a third of the bytes, for little to be seen
            picture = picture.quantize(128, dither=Image.Dither.NONE)
        picture.save(drawn, format="png", optimize=True)
        zoom = max(1, GRID_PIXELS // picture.width)
        size = f'width="{picture.width * zoom}" height="{picture.height * zoom}"'
        guided = (grid.predictor, grid.scale_text) if grid.method != "unguided" else ()
        title = ", ".join((grid.method, *guided))
        alternative = escape(f"samples of {title}", quote=True)
        blocks.append(
            f"<div><span>{escape(title)}</span>"
            f'<div class="crop" data-rows="{len(labels)}">'
            f'<img {size} src="{_uri("image/png", drawn.getvalue())}" alt="{alternative}">'
            "</div></div>"
        )
    return (
        '<p class="hint">Samples: the same column is the same seed in every block. '
        f'<label>Row <select class="classes"><option value="all">all</option>{options}'
        f'</select></label></p><div class="grids">{"".join(blocks)}</div>'
    )


def _sheet(sheet: Sheet) -> str:
    body = [
        "<tr>"
        + "".join(
            _cell(Cell(shown, value=value), word)
            for (shown, value), word in zip(line, sheet.words, strict=True)
        )
        + "</tr>"
        for line in sheet.lines
    ]
    head = "".join(map(_head, sheet.header, sheet.words))
    title, text = escape(sheet.title, quote=True), escape(sheet.text.replace("**", ""))
    return (
        f'<h2 id="{sheet.name}">{title}</h2><p>{text}</p>'
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _published() -> str:
    names = ("method", "metric", "value", "setting", "source", "note")
    lines = []
    for figure in published():
        number = _cell(Cell(figure.shown, value=figure.value), word=False)
        words = [
            f'<td class="{kind}" data-value="{escape(text, quote=True)}">{escape(text)}</td>'
            for text, kind in (
                (figure.method, "word"),
                (figure.metric, "word"),
                (figure.setting, "word long"),
                (figure.note, "word long"),
            )
        ]
        source = (
            f'<td class="word long" data-value="{escape(figure.source, quote=True)}">'
            f'<a rel="noreferrer" href="{escape(figure.url, quote=True)}">'
            f"{escape(figure.source)}</a></td>"
        )
        lines.append(f"<tr>{words[0]}{words[1]}{number}{words[2]}{source}{words[3]}</tr>")
    head = "".join(_head(name, name != "value") for name in names)
    return (
        '<h2 id="published">Published figures, not measured here</h2>'
        "<p>From the literature, each with its source. They were taken at other scales, on other "
        "data and with other evaluators: compare them with nothing above.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="published figures"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
