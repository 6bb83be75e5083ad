"""Parts of a page: tables that can be sorted, figures, and where a row's numbers are from."""

from __future__ import annotations

import base64
from html import escape

from reports.drawings import Drawing
from reports.records import Folder
from reports.tables import Cell, Table

__all__ = ["anchor", "body_cell", "figure", "head_cell", "row_name", "table", "uri"]


def anchor(folder: Folder, *parts: str) -> str:
    """The name of a place on a page of several folders, safe within an attribute."""
    return escape("-".join((folder.setting, folder.budget, *parts)).replace(" ", "-"), quote=True)


def row_name(folder: Folder, key: str) -> str:
    """What a row is called within a page of several folders."""
    return f"{folder.setting}-{folder.budget}/{key}"


def table(folder: Folder, content: Table, title: str) -> str:
    """A table whose rows open what is known of them; columns beyond the first few wait.

    Args:
        folder: that the rows belong to.
        content: of the table. Its primary columns come first, in their order; the others are
            shown when they are asked for.
        title: of the region.
    """
    primary = [name in content.primary or not content.primary for name in content.header]
    order = sorted(range(len(primary)), key=lambda place: not primary[place])
    more = [not primary[place] for place in order]
    words = [content.words[place] for place in order]
    head = "".join(
        head_cell(content.header[place], word, later)
        for place, word, later in zip(order, words, more, strict=True)
    )
    body = []
    for key, line in zip(content.keys, content.lines, strict=True):
        name = escape(row_name(folder, key), quote=True)
        first, *others = (line[place] for place in order)
        cells = map(body_cell, others, words[1:], more[1:])
        opened = (
            f'<td class="word" data-value="{escape(str(first.value), quote=True)}">'
            f'<button type="button" class="row">{escape(first.text)}</button></td>'
        )
        body.append(
            f'<tr id="{anchor(folder, key)}" data-key="{name}">{opened}{"".join(cells)}</tr>'
        )
    caption = escape(title, quote=True)
    short = ' class="short"' * any(more)
    button = '<button type="button" class="columns">More columns</button>' * any(more)
    return (
        f'<div class="sheet">{button}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table{short}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "</div></div>"
    )


def head_cell(name: str, word: bool, more: bool = False) -> str:
    """A header that sorts its column; words are set left, and `more` ones shown on demand."""
    button = f'<button type="button">{escape(name)}</button>'
    return f'<th scope="col"{_class(word, more)} aria-sort="none">{button}</th>'


def body_cell(cell: Cell, word: bool, more: bool = False) -> str:
    """A cell with what it is sorted by."""
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    interval = f" <small>{escape(cell.interval)}</small>" if cell.interval else ""
    value = escape(str(cell.value), quote=True)
    return f'<td{_class(word, more)} data-value="{value}">{text}{interval}</td>'


def figure(drawing: Drawing) -> str:
    """A drawing as vectors, with its caption."""
    caption = escape(drawing.caption, quote=True)
    kind = "narrow plot" if drawing.narrow else "plot"
    return (
        f'<figure><div class="plate" tabindex="0" role="region" aria-label="{caption}">'
        f'<img class="{kind}" src="{uri("image/svg+xml", drawing.svg)}" alt="{caption}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def uri(kind: str, content: bytes) -> str:
    """The content itself as an address, so that nothing is fetched."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _class(word: bool, more: bool) -> str:
    names = ["word"] * word + ["more"] * more
    return f' class="{" ".join(names)}"' if names else ""
