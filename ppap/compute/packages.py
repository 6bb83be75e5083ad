"""Graphs compiled ahead of time for a CPU, kept on disk for other processes to load."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ppap.compute.allocator import keep_freed_memory
from ppap.compute.cpu import instruction_set
from ppap.compute.tracing import Traced
from ppap.files.checkpoints import fingerprint

__all__ = ["cache_folder", "package"]

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled graphs are kept: ``$XDG_CACHE_HOME/ppap/compiled``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ppap" / "compiled"


def package(
    traced: Traced, arguments: tuple[Any, ...], folder: Path, freezing: bool = False
) -> tuple[Callable[..., Any], bool]:
    """Inductor's package for a graph, from disk if some process has compiled it before.

    What is on disk is found by the traced graph itself, for exporting it takes as long as tracing.

    Args:
        traced: what is compiled, at the shapes of its arguments.
        arguments: examples.
        folder: where packages are kept, such as :func:`cache_folder`.
        freezing: whether the graph's own tensors are constants that inductor may rearrange.

    Returns:
        The compiled graph, and whether it had to be compiled. A folder that cannot be written,
        or a package in it that is damaged, costs that and a logged line.
    """
    keep_freed_memory()
    path = folder / f"{_digest(traced, arguments, freezing)}.pt2"
    if path.is_file():
        try:
            _check(path)
            return torch._inductor.aoti_load_package(str(path)), False
        except Exception as error:  # noqa: BLE001 a damaged package makes its loader raise anything
            logger.warning("%s is damaged and compiled anew: %s", path, error)
    program = torch.export.export(traced, arguments)
    with tempfile.TemporaryDirectory() as scratch_folder:
        scratch = Path(scratch_folder) / path.name
        with torch._inductor.config.patch(freezing=freezing):
            torch._inductor.aoti_compile_and_package(program, package_path=str(scratch))
        _keep(scratch, path)
        return torch._inductor.aoti_load_package(str(scratch)), True


def _check(path: Path) -> None:
    """Raise for a package whose bytes are not those that were written."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is not what was written")


def _keep(scratch: Path, path: Path) -> None:
    beside = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scratch, beside)
        beside.replace(path)
    except OSError as error:
        logger.warning("the compiled graph cannot be kept for other processes: %s", error)
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _digest(traced: Traced, arguments: tuple[Any, ...], freezing: bool) -> str:
    """Names a compiled graph: what it computes, with which constants, for which machine."""
    digest = hashlib.sha256()
    machine = (
        torch.__version__,
        instruction_set(),
        torch.get_num_threads(),
        freezing,
    )
    inputs = [
        (tuple(value.shape), value.stride(), value.dtype)
        for value in (*tree_leaves(arguments), *traced.buffers())
        if isinstance(value, Tensor)
    ]
    parts = traced.named_modules()
    graphs = [(name, part.code) for name, part in parts if isinstance(part, fx.GraphModule)]
    digest.update(repr((machine, inputs, graphs)).encode())
    digest.update(fingerprint(dict(traced.named_buffers())).encode())
    return digest.hexdigest()[:32]
