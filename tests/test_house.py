"""The house: an import only ever points down, never round in a circle, and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    "ppap_kernels",
    "ppap.files", "ppap.compute", "ppap.diffusion", "ppap.denoisers", "ppap.tasks",
    "ppap.predictors", "ppap.guidance", "ppap.experts", "ppap.evaluation", "ppap.fast", "ppap",
    "reports",
    "ablations.errors", "ablations.machine", "ablations.settings", "ablations.cells",
    "ablations.sweeps", "ablations",
    "bench",
)  # fmt: skip
"""Ground floor first. A file is on the floor of the longest name that begins its own."""
LONGEST = 400


def module(path: Path) -> str:
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> Iterator[Path]:
    for folder in ("kernels/ppap_kernels", "ppap", "reports", "ablations", "bench"):
        yield from (ROOT / folder).glob("**/*.py")


FILES = {module(path): path for path in source_files()}


def floor(name: str) -> int:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in FLOORS:
            return FLOORS.index(prefix)
    raise ValueError(f"{name} is on no floor")


def imports(path: Path) -> set[str]:
    """Files of the house that a file imports anywhere, for type checkers alone as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= named if named <= set(FILES) else named | {node.module}
    return found & set(FILES)


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def test_the_house_was_found() -> None:
    assert len(FILES) > 150
    assert {floor(name) for name in FILES} == set(range(len(FLOORS)))


@pytest.mark.parametrize("level", range(len(FLOORS)), ids=FLOORS)
def test_a_room_imports_from_itself_and_those_below(level: int) -> None:
    own = {name for name in FILES if floor(name) == level}
    upward = {(name, other) for name in own for other in IMPORTS[name] if floor(other) > level}
    assert upward == set()


def test_no_two_files_import_each_other_even_by_way_of_others() -> None:
    remaining = {name: set(below) for name, below in IMPORTS.items()}
    while leaves := [name for name, below in remaining.items() if not below]:
        for leaf in leaves:
            del remaining[leaf]
        for below in remaining.values():
            below.difference_update(leaves)
    assert remaining == {}


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
