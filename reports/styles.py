"""How each method is drawn, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from reports.records import method_rank

__all__ = ["Style", "styles"]

Dash = tuple[float, ...]


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Colours are Okabe and Ito's, and three of Paul Tol's: colour-blind readers tell them apart.

    Attributes:
        colour: hexadecimal RGB.
        marker: of matplotlib's.
        dash: on and off lengths in line widths; empty for solid.
        offset: of a point's annotation, in points right and up.
    """

    colour: str
    marker: str
    dash: Dash
    offset: tuple[int, int]


_STYLES = {
    "unguided": Style("#707070", "X", (1, 1), (-14, -14)),
    "naive": Style("#E69F00", "s", (4, 1.5), (0, 7)),
    "single": Style("#56B4E9", "^", (5, 1.5, 1, 1.5), (6, -8)),
    "multi-experts": Style("#009E73", "D", (2, 1), (-8, -10)),
    "ppap": Style("#D55E00", "o", (), (6, 3)),
}
_SPARE = (
    Style("#CC79A7", "v", (3, 1, 1, 1, 1, 1), (-8, 5)),
    Style("#0072B2", "P", (6, 2), (0, -12)),
    Style("#000000", "*", (1, 2), (-8, 0)),
    Style("#882255", "<", (7, 1.5, 1, 1.5, 1, 1.5), (7, -4)),
    Style("#44AA99", ">", (3, 3), (-9, 8)),
    Style("#999933", "h", (8, 3, 2, 3), (8, 8)),
)


def styles(methods: list[str]) -> dict[str, Style]:
    """The look of each method; those the paper does not name have the spare ones in order.

    Colours come again after the sixth, with another marker and dash each time: 36 are told apart.
    """
    spare = _spare()
    return {name: _STYLES.get(name) or next(spare) for name in sorted(methods, key=method_rank)}


def _spare() -> Iterator[Style]:
    turn = 0
    while True:
        for place, look in enumerate(_SPARE):
            other = _SPARE[(place + turn) % len(_SPARE)]
            yield replace(look, marker=other.marker, dash=other.dash)
        turn += 1
