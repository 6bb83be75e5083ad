"""Self-contained pages: tables to sort, figures, samples, and where each number is from."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from reports.claim_tables import arms_legend, arms_table, claims_legend, claims_table
from reports.drawings import Drawing, Report
from reports.figures import mosaic
from reports.findings import findings
from reports.grids import Grid, Strip
from reports.html import anchor, body_cell, figure, head_cell, table, uri
from reports.kernels import Sheet
from reports.provenance import provenance
from reports.published import published
from reports.records import Folder, Records
from reports.tables import Cell, Table, headline, legend

__all__ = ["MAX_BYTES", "overview", "page"]

MAX_BYTES = 10_000_000
GRID_PIXELS = 560
STRIP_PIXELS = 96
"""Widths of a block of samples and of a step of a trajectory, at most."""
LONG = 60
"""Rows of a table of speed from which on it waits to be unfolded."""
HERE = Path(__file__).parent
PUBLISHED_LINK = '<a href="#published">published</a>'
INTRODUCTION = (
    "Experts for noise ranges, trained without data, steer a diffusion model by an off-the-shelf "
    "predictor. Sort a table by its headers; click a row for where its numbers come from."
)


def page(
    reports: Sequence[Report],
    tables: Sequence[Sheet] = (),
    samples: bool = True,
    home: str | None = None,
) -> str:
    """HTML of everything that the folders hold; nothing in it is fetched from elsewhere.

    Args:
        reports: in the order shown.
        tables: of speed and of kernels, after them.
        samples: whether sample images are shown, which are most of a page's bytes.
        home: file of the page that links to this one and to others.
    """
    folders = [report.folder for report in reports]
    links = [] if home is None else [f'<a href="{escape(home, quote=True)}">all settings</a>']
    parts = [findings(reports), *(_folder(report, samples) for report in reports)]
    links += _opening_link(parts[0])
    links += [f'<a href="#{anchor(folder)}">{_name(folder)}</a>' for folder in folders]
    return _framed(folders, links, parts, tables)


def overview(reports: Sequence[Report], tables: Sequence[Sheet], pages: Mapping[str, str]) -> str:
    """HTML of the findings of all settings, with links to each setting's own page.

    Args:
        reports: of several settings, in the order shown.
        tables: of speed and of kernels.
        pages: file of each setting's page, beside this one.
    """
    opening, lists = findings(reports, pages), []
    files = {setting: escape(file, quote=True) for setting, file in pages.items()}
    links = [f'<a href="{file}">{escape(setting)}</a>' for setting, file in files.items()]
    for folder in (report.folder for report in reports):
        file = files[folder.setting]
        lists.append(f'<h2><a href="{file}#{anchor(folder)}">{_name(folder)}</a></h2>')
        lists.append(_sweeps(folder, file))
    return _framed([], _opening_link(opening) + links, [opening, *lists], tables)


def _name(folder: Folder) -> str:
    return f"{escape(folder.setting)}, {escape(folder.budget)}"


def _opening_link(opening: str) -> list[str]:
    return ['<a href="#findings">findings</a>'] * bool(opening)


def _framed(
    folders: Sequence[Folder], links: Sequence[str], parts: Sequence[str], tables: Sequence[Sheet]
) -> str:
    """A page with these links and parts; rows of the folders open where they are from."""
    links = [*links, *(f'<a href="#{sheet.name}">{escape(sheet.name)}</a>' for sheet in tables)]
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
            *parts,
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


def _folder(report: Report, samples: bool) -> str:
    folder = report.folder
    title = f"Setting {escape(folder.setting)}, budget {escape(folder.budget)}"
    parts = [f'<h2 id="{anchor(folder)}">{title}</h2>']
    if folder.machines:
        parts.append(f'<p class="where">Seen on {escape("; ".join(folder.machines))}.</p>')
    parts.append(_sweeps(folder))
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


def _sweeps(folder: Folder, file: str = "") -> str:
    """A list of a folder's sweeps with links to where they are."""
    links = [
        f'<li><a href="{file}#{anchor(folder, records.sweep)}">'
        f"{escape(records.info.title)}</a></li>"
        for records in folder.sweeps
    ]
    return f'<ul class="sweeps">{"".join(links)}</ul>'


def _sweep(folder: Folder, records: Records, drawings: Sequence[Drawing], samples: bool) -> str:
    parts = [
        f'<section id="{anchor(folder, records.sweep)}">',
        f"<h3>{escape(records.info.title)}</h3>",
        f"<p>{escape(records.info.description)}</p>",
    ]
    if not records.rows.empty:
        where = headline(records).replace("**", "").replace("`", "")
        parts += [
            f'<p class="where">{escape(where)}</p>',
            table(folder, Table.of(records), records.info.title),
            _meanings(legend(records)),
        ]
    if records.findings:
        parts += [
            f'<h4 id="{anchor(folder, records.sweep, "contrasts")}">Contrasts</h4>',
            table(folder, claims_table(records.findings), "contrasts"),
            _meanings(claims_legend()),
        ]
    if records.arms:
        parts += [
            f'<h4 id="{anchor(folder, records.sweep, "curves")}">Curves</h4>',
            table(folder, arms_table(records.arms), "curves"),
            _meanings(arms_legend(records.arms)),
        ]
    # Samples are shown larger, below, and contrasts among the findings.
    elsewhere = ("-samples", "-trajectory", "-contrasts")
    parts += [figure(drawing) for drawing in drawings if not drawing.name.endswith(elsewhere)]
    if samples:
        parts += map(_strip, records.strips)
    if records.grids and samples:
        parts.append(_grids(records.grids))
    elif records.grids:
        name = escape(f"{records.sweep}-samples.png")
        parts.append(f'<p class="hint">Samples are too many for this page: see {name}.</p>')
    return "\n".join([*parts, "</section>"])


def _meanings(lines: Sequence[str]) -> str:
    meanings = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>What the columns mean</summary><ul>{meanings}</ul></details>"


def _grids(grids: Iterable[Grid]) -> str:
    grids = list(grids)
    labels = grids[0].labels
    options = "".join(
        f'<option value="{place}">{escape(label)}</option>' for place, label in enumerate(labels)
    )
    blocks = []
    for grid in grids:
        picture = Image.fromarray(mosaic(grid.images, 1))
        zoom = max(1, GRID_PIXELS // picture.width)
        size = f'width="{picture.width * zoom}" height="{picture.height * zoom}"'
        guided = (grid.predictor, grid.scale_text) if grid.method != "unguided" else ()
        title = ", ".join((grid.method, *guided))
        alternative = escape(f"samples of {title}", quote=True)
        blocks.append(
            f"<div><span>{escape(title)}</span>"
            f'<div class="crop" data-rows="{len(labels)}">'
            f'<img {size} src="{_png(picture)}" alt="{alternative}">'
            "</div></div>"
        )
    matched = any(not math.isnan(grid.score) for grid in grids)
    told = "Every block is at the scale whose score is nearest to one and the same. " * matched
    return (
        f'<p class="hint">Samples: the same column is the same seed in every block. {told}'
        f'<label>Row <select class="classes"><option value="all">all</option>{options}'
        f'</select></label></p><div class="grids">{"".join(blocks)}</div>'
    )


def _strip(strip: Strip) -> str:
    """A trajectory, step by step, below what each step is and which expert led to it."""
    steps = []
    for place, (column, expert) in enumerate(zip(strip.columns, strip.experts, strict=True)):
        picture = Image.fromarray(mosaic(strip.images[:, place : place + 1], 1))
        zoom = max(1, STRIP_PIXELS // picture.width)
        guide = "" if expert is None else f"expert {expert}"
        steps.append(
            f"<div><span>{escape(column)}</span><span>{guide}&nbsp;</span>"
            f'<img width="{picture.width * zoom}" height="{picture.height * zoom}" '
            f'src="{_png(picture)}" alt="{escape(f"{column} {guide}".strip(), quote=True)}"></div>'
        )
    title = escape(f"trajectory of {strip.method}, {strip.predictor}", quote=True)
    return (
        f'<p class="hint">One guided {title}: noise to image, and the expert that guides each '
        f"step. From top to bottom: {escape(', '.join(strip.labels))}.</p>"
        f'<div class="strip" tabindex="0" role="region" aria-label="{title}">{"".join(steps)}</div>'
    )


def _png(picture: Image.Image) -> str:
    drawn = io.BytesIO()
    if picture.mode == "RGB":  # a third of the bytes, for little to be seen
        picture = picture.quantize(128, dither=Image.Dither.NONE)
    picture.save(drawn, format="png", optimize=True)
    return uri("image/png", drawn.getvalue())


def _sheet(sheet: Sheet) -> str:
    body = [
        "<tr>"
        + "".join(
            body_cell(Cell(shown, value=value), word)
            for (shown, value), word in zip(line, sheet.words, strict=True)
        )
        + "</tr>"
        for line in sheet.lines
    ]
    head = "".join(map(head_cell, sheet.header, sheet.words))
    title, text = escape(sheet.title, quote=True), escape(sheet.text.replace("**", ""))
    rows = (
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    if len(sheet.lines) > LONG:
        rows = f"<details><summary>All {len(sheet.lines)} rows</summary>{rows}</details>"
    return f'<h2 id="{sheet.name}">{title}</h2><p>{text}</p>{rows}'


def _published() -> str:
    names = ("method", "metric", "value", "setting", "source", "note")
    lines = []
    for one in published():
        number = body_cell(Cell(one.shown, value=one.value), word=False)
        words = [
            f'<td class="{kind}" data-value="{escape(text, quote=True)}">{escape(text)}</td>'
            for text, kind in (
                (one.method, "word"),
                (one.metric, "word"),
                (one.setting, "word long"),
                (one.note, "word long"),
            )
        ]
        source = (
            f'<td class="word long" data-value="{escape(one.source, quote=True)}">'
            f'<a rel="noreferrer" href="{escape(one.url, quote=True)}">'
            f"{escape(one.source)}</a></td>"
        )
        lines.append(f"<tr>{words[0]}{words[1]}{number}{words[2]}{source}{words[3]}</tr>")
    head = "".join(head_cell(name, name != "value") for name in names)
    return (
        '<h2 id="published">Published figures, not measured here</h2>'
        "<p>From the literature, each with its source. They were taken at other scales, on other "
        "data and with other evaluators: compare them with nothing above.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="published figures"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
