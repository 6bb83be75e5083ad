"""Figures from the literature, kept apart from those measured here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PublishedTable", "published_table"]

PATH = Path(__file__).with_name("published.toml")
HEADER = ("method", "metric", "value", "setting", "source")


@dataclass(frozen=True)
class PublishedTable:
    """Figures with their sources.

    Attributes:
        header: of each column.
        lines: a text for each column, for each figure.
    """

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def published_table(path: Path = PATH) -> PublishedTable:
    """The figures of the file.

    Raises:
        ValueError: if one lacks its source or another field.
    """
    figures = tomllib.loads(path.read_text(encoding="utf-8"))["figure"]
    for figure in figures:
        if missing := [name for name in HEADER if not figure.get(name)]:
            raise ValueError(f"{path.name}: a figure has no {missing[0]}: {figure}")
    return PublishedTable(HEADER, tuple(tuple(f[name] for name in HEADER) for f in figures))
