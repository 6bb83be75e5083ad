"""What a run did and when, in a file: each cell as it starts and ends, and whole tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOG", "LOG_FILE", "logged_to"]

LOG_FILE = "run.log"
LOG = logging.getLogger("ablations")


@contextmanager
def logged_to(folder: Path) -> Iterator[None]:
    """Append all that is logged meanwhile to the folder's ``run.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        LOG.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)
        handler.close()
