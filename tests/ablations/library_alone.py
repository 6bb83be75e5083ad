"""``python -m ablations`` as if the packages of the dependency group ``harness`` were not there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ABSENT = ("matplotlib", "pandas", "seaborn", "tabulate")
"""Those that torch does not need itself."""


class Without(PathFinder):
    """Finds what is installed, but for some packages."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(fullname, path, target)


def meta_path() -> list[object]:
    """``sys.meta_path`` with :class:`Without` in place of the usual finder."""
    return [Without if finder is PathFinder else finder for finder in sys.meta_path]


if __name__ == "__main__":
    sys.meta_path[:] = meta_path()  # type: ignore[assignment]
    from ablations.__main__ import main

    raise SystemExit(main())
