"""Figures from the literature, kept apart from those measured here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Published", "published"]

PATH = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Published:
    """A figure of others.

    Attributes:
        method: what was measured or counted.
        metric: which figure, with its unit.
        value: of the figure.
        uncertainty: of the value, either way; 0 for an exact count.
        settings: names of the settings here that are nearest to it.
        setting: how it was taken.
        source: where it stands.
        url: of the source, https.
        note: what to keep in mind.
    """

    method: str
    metric: str
    value: float
    uncertainty: float
    settings: tuple[str, ...]
    setting: str
    source: str
    url: str
    note: str

    @property
    def shown(self) -> str:
        """The value with its uncertainty."""
        value = f"{self.value:,}"
        return f"{value} ± {self.uncertainty:g}" if self.uncertainty else value


def published(path: Path = PATH) -> tuple[Published, ...]:
    """The figures of the file, in its order.

    Raises:
        ValueError: if a source or a figure lacks a field, or an address is not https.
    """
    found = []
    for source in tomllib.loads(path.read_text(encoding="utf-8"))["source"]:
        _demand(source, ("text", "url", "settings", "setting", "note", "figures"), path)
        if not source["url"].startswith("https://"):
            raise ValueError(f"{path.name}: {source['url']} is not https")
        about = {"source": source["text"]} | {k: source[k] for k in ("url", "setting", "note")}
        about["settings"] = tuple(source["settings"])
        for figure in source["figures"]:
            _demand(figure, ("method", "metric", "value", "uncertainty"), path)
            found.append(Published(**figure, **about))
    return tuple(found)


def _demand(table: dict[str, object], names: tuple[str, ...], path: Path) -> None:
    for name in names:
        if table.get(name) in (None, ""):
            raise ValueError(f"{path.name}: an entry has no {name}: {table}")
