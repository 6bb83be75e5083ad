"""Code that a run brings along, as a part of keys: changed code makes other results."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from ablations.errors import UserError

__all__ = ["code_of", "digest_of_class", "digest_of_code"]

NOT_OWN = ("ppap", "ppap_kernels", "ablations", "reports")
"""Packages of this repository, whose cells have versions."""


def code_of(module: ModuleType) -> list[Path]:
    """The file of a plugin, and those that it imports from its folder, and these in turn.

    What is imported within a function counts, be it loaded by now or not.
    """
    path = Path(module.__file__ or "").resolve()
    folder, found = path.parent, set[Path]()
    depth = module.__name__.count(".") + (path.stem == "__init__")
    root = path.parents[min(depth, len(path.parents) - 1)]
    ahead = [(module.__name__, path)]
    while ahead:
        name, path = ahead.pop()
        if path in found:
            continue
        found.add(path)
        for other in dict.fromkeys(_imported(name, path)):
            file = _file_of(other, root)
            beside = file.is_relative_to(folder) and "site-packages" not in file.parts
            if beside and file.suffix == ".py" and other.split(".")[0] not in NOT_OWN:
                ahead.append((other, file))
    return sorted(found)


def digest_of_code(files: Sequence[Path | str], more: str = "") -> str:
    """Changes when the content of a file does.

    Raises:
        UserError: for a file that cannot be read.
    """
    found = hashlib.sha256(more.encode())
    for path in files:
        try:
            found.update(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}", "name code and weights") from error
    return found.hexdigest()[:16]


def digest_of_class(cls: type) -> str:
    """Changes when the code of a user's class does; empty for one of this repository's."""
    return "" if cls.__module__.split(".")[0] in NOT_OWN else _digest_of_module(cls.__module__)


@cache
def _digest_of_module(name: str) -> str:
    module = sys.modules[name]
    return digest_of_code(code_of(module)) if getattr(module, "__file__", None) else ""


def _imported(module: str, path: Path) -> Iterator[str]:
    """Names that may be modules', those of their packages among them, in the order of the code."""
    try:
        code = ast.parse(path.read_bytes())
    except SyntaxError:  # nobody has imported it
        return
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(code):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            yield from (".".join(parts[: count + 1]) for count in range(len(parts)))


def _file_of(name: str, root: Path) -> Path:
    """Of a module: where it was loaded from, or would be below a folder; the root if nowhere."""
    if name in sys.modules:
        return Path(getattr(sys.modules[name], "__file__", None) or "/").resolve()
    place = root.joinpath(*name.split("."))
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in files if file.is_file()), Path("/"))
