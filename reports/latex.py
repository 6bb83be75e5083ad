"""A sweep's table in LaTeX; the document around it needs nothing but booktabs."""

from __future__ import annotations

import re
import unicodedata

from reports.tables import Cell, Table

__all__ = ["escaped", "latex_table", "reference"]

# In LaTeX's default encoding a bare < prints as an exclamation mark upside down.
SYMBOLS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
    **{symbol: f"${symbol}$" for symbol in "<>|"},
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "←": r"$\leftarrow$",
    "↔": r"$\leftrightarrow$", "±": r"$\pm$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$",
    "≠": r"$\neq$", "≈": r"$\approx$", "√": r"$\surd$", "∇": r"$\nabla$", "∑": r"$\sum$",
    "∞": r"$_\infty$", "°": r"$^\circ$", "…": r"\ldots{}", '"': "''", "—": "---",
    "“": "``", "”": "''", "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}",
    "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ł": r"\l{}", "Ł": r"\L{}",
    "\N{LATIN SMALL LETTER DOTLESS I}": r"\i{}",
    "\N{LEFT SINGLE QUOTATION MARK}": "`", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$",
    "\N{HYPHEN}": "-", "\N{FRACTION SLASH}": "/", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
LETTERS = {
    0x391: "A B Gamma Delta E Z H Theta I K Lambda M N Xi O Pi P",
    0x3A3: "Sigma T Upsilon Phi X Psi Omega",
    0x3B1: "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho "
    "varsigma sigma tau upsilon phi chi psi omega",
}
"""Greek, by the number of the first; those that look like Latin letters have no command."""
GREEK = {
    chr(first + place): name if len(name) == 1 else f"\\{name}"
    for first, names in LETTERS.items()
    for place, name in enumerate(names.split())
}
"""In formulas."""
ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": ("`", "grave"),
    "\N{COMBINING ACUTE ACCENT}": ("'", "acute"),
    "\N{COMBINING CIRCUMFLEX ACCENT}": ("^", "hat"),
    "\N{COMBINING TILDE}": ("~", "tilde"),
    "\N{COMBINING MACRON}": ("=", "bar"),
    "\N{COMBINING OVERLINE}": ("=", "bar"),
    "\N{COMBINING BREVE}": ("u", "breve"),
    "\N{COMBINING DOT ABOVE}": (".", "dot"),
    "\N{COMBINING DIAERESIS}": ('"', "ddot"),
    "\N{COMBINING RING ABOVE}": ("r", "mathring"),
    "\N{COMBINING CARON}": ("v", "check"),
}
"""Commands in text and in formulas."""
CLUSTER = re.compile("[^\u0300-\u036f]?[\u0300-\u036f]+|.", re.DOTALL)
"""A character with its combining marks."""
BEYOND_LABELS = re.compile(r"[^A-Za-z0-9_.+=*-]")
"""What a label cannot hold, or a list of labels is parted by, or babel makes a command."""
MINUS = re.compile(r"(?<![\w.])-(?=[.\d])")


def latex_table(table: Table, caption: str, label: str) -> str:
    """A table for booktabs: best in bold, intervals small behind their values.

    Args:
        table: to set.
        caption: above it; Markdown's marks are left out.
        label: to refer to it by, after ``tab:``; see :func:`reference`.
    """
    columns = "".join("l" if word else "r" for word in table.words)
    caption = caption.replace("**", "").replace("`", "")
    lines = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{tab:{reference(label)}}}",
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
    """The text with LaTeX's special characters, and those beyond ASCII, as commands.

    A character that LaTeX has no command for is told by its number in Unicode: what comes out is
    ASCII, whatever goes in.
    """
    return "".join(map(_command, CLUSTER.findall(unicodedata.normalize("NFC", text))))


def reference(label: str) -> str:
    r"""The label as ``\ref`` takes it: other characters are told by their numbers in Unicode.

    A command would not do: a label is no text.
    """
    return BEYOND_LABELS.sub(lambda found: f"U+{ord(found[0]):04X}", label)


def _command(cluster: str) -> str:
    if cluster in SYMBOLS or cluster.isascii():
        return SYMBOLS.get(cluster, cluster)
    if cluster in GREEK:
        return f"${GREEK[cluster]}$"
    base, *marks = list(unicodedata.normalize("NFD", cluster))
    if len(marks) == 1 and marks[0] in ACCENTS and base.isalpha():
        accent, hat = ACCENTS[marks[0]]
        # What Unicode composes is a word's letter, and x with a hat a formula's.
        if base.isascii() and len(cluster) == 1:
            return f"\\{accent}{{{base}}}" if accent.isalpha() else f"\\{accent}{base}"
        if base.isascii() or base in GREEK:
            return f"$\\{hat}{{{GREEK.get(base, base)}}}$"
    form, _, plain = unicodedata.decomposition(cluster[0]).partition(" ")
    if len(cluster) == 1 and form in ("<sub>", "<super>"):
        raised = "".join(chr(int(number, 16)) for number in plain.split())
        inner = escaped(raised).replace("$", "")
        inner = inner if len(raised) == 1 else f"{{{inner}}}"
        return f"${'_' if form == '<sub>' else '^'}{inner}$"
    if (plain := unicodedata.normalize("NFKC", cluster)) != cluster:
        return escaped(plain)
    return "".join(f"\\texttt{{U+{ord(symbol):04X}}}" for symbol in cluster)


def _line(cells: tuple[Cell, ...]) -> str:
    text = " & ".join(map(_cell, cells)) + r" \\"
    # The line break before would take a bracket or a star for its own argument.
    return "{}" + text if text.startswith(("[", "*")) else text


def _cell(cell: Cell) -> str:
    text = MINUS.sub("$-$", escaped(cell.text))
    text = f"\\textbf{{{text}}}" if cell.best else text
    interval = MINUS.sub("$-$", escaped(cell.interval))
    return f"{text} {{\\scriptsize {interval}}}" if interval else text
