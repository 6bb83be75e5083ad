"""The rooms of the library: an import only ever points down, and never round in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PPAP = Path(__file__).resolve().parents[2] / "ppap"
ROOMS = (
    "files", "compute", "diffusion", "denoisers", "tasks", "predictors", "guidance", "experts",
    "evaluation", "fast",
)  # fmt: skip
"""Ground floor first."""


def module(path: Path) -> str:
    return ".".join(path.relative_to(PPAP.parent).with_suffix("").parts)


def imports(source: str) -> set[str]:
    """Modules of ppap that a file imports anywhere, for type checkers alone as well."""
    nodes = ast.walk(ast.parse(source))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in found if name.startswith("ppap.")}


FILES = {module(path): path for path in PPAP.glob("*/**/*.py") if path.name != "__init__.py"}


def test_every_file_is_in_a_room() -> None:
    assert {name.split(".")[1] for name in FILES} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_itself_and_those_below(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    upward = [
        (name, imported)
        for name, path in FILES.items()
        if name.split(".")[1] == room
        for imported in imports(path.read_text())
        if imported.split(".")[1] not in allowed
    ]
    assert upward == []


def test_no_two_files_import_each_other_even_by_way_of_others() -> None:
    remaining = {name: imports(path.read_text()) & set(FILES) for name, path in FILES.items()}
    while leaves := [name for name, below in remaining.items() if not below]:
        for leaf in leaves:
            del remaining[leaf]
        for below in remaining.values():
            below.difference_update(leaves)
    assert remaining == {}


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
