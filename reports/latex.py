"""A sweep's table in LaTeX; the document around it needs nothing but booktabs."""

from __future__ import annotations

import re

from reports.tables import Cell, Table

__all__ = ["escaped", "latex_table"]

# In LaTeX's default encoding a bare < prints as an exclamation mark upside down.
SYMBOLS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
    **{symbol: f"${symbol}$" for symbol in "<>|"},
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "±": r"$\pm$",
    "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$_\infty$", "₀": "$_0$",
    "²": "$^2$", "Δ": r"$\Delta$", "é": r"\'e", "—": "---", "…": r"\ldots{}", '"': "''",
    "ε": r"$\epsilon$", "η": r"$\eta$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$", "\N{GREEK SMALL LETTER GAMMA}": r"$\gamma$",
    "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$",
}  # fmt: skip
MINUS = re.compile(r"(?<![\w.])-(?=[.\d])")


def latex_table(table: Table, caption: str, label: str) -> str:
    """A table for booktabs: best in bold, intervals small behind their values.

    Args:
        table: to set.
        caption: above it; Markdown's marks are left out.
        label: to refer to it by, after ``tab:``.
    """
    columns = "".join("l" if word else "r" for word in table.words)
    caption = caption.replace("**", "").replace("`", "")
    lines = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escaped, table.header)) + r" \\",
        r"\midrule",
        *(_line(line) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """The text with LaTeX's special characters, and those beyond ASCII, as commands."""
    return "".join(SYMBOLS.get(symbol, symbol) for symbol in text)


def _line(cells: tuple[Cell, ...]) -> str:
    text = " & ".join(map(_cell, cells)) + r" \\"
    # The line break before would take a bracket or a star for its own argument.
    return "{}" + text if text.startswith(("[", "*")) else text


def _cell(cell: Cell) -> str:
    text = MINUS.sub("$-$", escaped(cell.text))
    text = f"\\textbf{{{text}}}" if cell.best else text
    interval = MINUS.sub("$-$", escaped(cell.interval))
    return f"{text} {{\\scriptsize {interval}}}" if interval else text
