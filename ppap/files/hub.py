"""Optional libraries and models of the Hugging Face hub, or one line on how to get them."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppap.files.checkpoints import CheckpointError, one_line

__all__ = ["extra", "hub_folder", "no_bars", "quiet", "read_settings"]


def extra(name: str) -> Any:
    """A library of the extra ``public``.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this model needs {name}: pip install {name}") from error


def hub_folder(source: str | Path, patterns: Sequence[str], nested: bool = True) -> Path:
    """A local folder with some files of a model.

    Args:
        source: a folder, which is given back as it is, or a hub id, which is fetched.
        patterns: of the names of the files that are fetched, e.g. ``"*.json"``.
        nested: whether files in subfolders are fetched, too.

    Raises:
        CheckpointError: if there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(source),
                allow_patterns=list(patterns),
                ignore_patterns=None if nested else ["*/*"],
            )
        )
    except Exception as error:  # the hub's client raises whatever the network does
        raise CheckpointError(
            f"{source} is no folder, and the hub does not give it ({one_line(error)}); "
            f"fetch https://huggingface.co/{source}"
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file, which may begin with a byte order mark.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; fetch it again") from error


@contextmanager
def no_bars() -> Iterator[None]:
    """transformers shows no progress."""
    logging_of = extra("transformers").utils.logging
    before = logging_of.is_progress_bar_enabled()
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging_of.enable_progress_bar()


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Only errors of a library's logger are heard: what it warns of is checked here."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
