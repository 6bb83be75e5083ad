"""What LaTeX is given is ASCII, and says what the text said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reports.build import RESULTS
from reports.latex import escaped, latex_table, reference
from reports.tables import Table


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("δ₁ ↑", r"$\delta$$_1$ $\uparrow$"),
        ("best of 8 ← 4", r"best of 8 $\leftarrow$ 4"),
        ("x\N{COMBINING CIRCUMFLEX ACCENT}₀", r"$\hat{x}$$_0$"),
        ("\N{GREEK SMALL LETTER ALPHA}\N{COMBINING MACRON}", r"$\bar{\alpha}$"),
        ("ᾱ, ε\N{COMBINING TILDE}", r"$\bar{\alpha}$, $\tilde{\epsilon}$"),
        ("e\N{COMBINING ACUTE ACCENT} is é", r"\'e is \'e"),
        ("Dvořák, Gödel, Strauß, Åse", r"Dvo\v{r}\'ak, G\"odel, Strau\ss{}, \r{A}se"),
        ("10⁻⁸ m³", "10$^-$$^8$ m$^3$"),
        ("Σ η, μ, λ, ς", r"$\Sigma$ $\eta$, $\mu$, $\lambda$, $\varsigma$"),
        ("\N{GREEK CAPITAL LETTER BETA}\N{GREEK SMALL LETTER OMICRON}", "$B$$o$"),
        ("5 \N{MICRO SIGN}s ± 1 ≤ 2 ≥ 1", r"5 $\mu$s $\pm$ 1 $\leq$ 2 $\geq$ 1"),
        ("½ ﬁt", "1/2 fit"),
        ("雪 ◐", r"\texttt{U+96EA} \texttt{U+25D0}"),
        ("\N{COMBINING CARON}", r"\texttt{U+030C}"),
    ],
)
def test_text_beyond_ascii_is_said_in_commands(text: str, wanted: str) -> None:
    assert escaped(text) == wanted


def test_no_character_is_beyond_ascii_in_the_end() -> None:
    every = map(chr, range(0x80, sys.maxunicode + 1, 7))
    for symbol in (*every, *map(chr, range(0x80, 0x2600))):
        for text in (symbol, f"x{symbol}"):
            assert escaped(text).isascii(), f"U+{ord(symbol):04X}"
            assert escaped(text)


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.tex")), ids=lambda path: path.stem)
def test_committed_tables_are_ascii(path: Path) -> None:
    assert path.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("dense-peft", "dense-peft"),
        ("claims_2.curves", "claims_2.curves"),
        ("50% {of} #1", "50U+0025U+0020U+007BofU+007DU+0020U+00231"),
        ("a,b", "aU+002Cb"),
        ("größe", "grU+00F6U+00DFe"),
    ],
)
def test_a_label_has_no_character_that_a_label_cannot_have(label: str, wanted: str) -> None:
    assert reference(label) == wanted
    assert rf"\label{{tab:{wanted}}}" in latex_table(Table((), (), (), ()), "caption", label)
