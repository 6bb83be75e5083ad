"""Graphs compiled ahead of time for a CPU, kept on disk for other processes to load."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppap.compute.allocator import keep_freed_memory
from ppap.compute.cpu import instruction_set

__all__ = ["cache_folder", "package"]


def cache_folder() -> Path:
    """Where compiled graphs are kept: ``$XDG_CACHE_HOME/ppap/compiled``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ppap" / "compiled"


def package(
    module: nn.Module, arguments: tuple[Any, ...], folder: Path, freezing: bool = False
) -> tuple[Callable[..., Any], bool]:
    """Inductor's package for a module, from disk if some process has compiled it before.

    Args:
        module: what is compiled, at the shapes of its arguments.
        arguments: examples.
        folder: where packages are kept, such as :func:`cache_folder`.
        freezing: whether the module's own tensors are constants that inductor may rearrange.

    Returns:
        The compiled module, and whether it had to be compiled.
    """
    keep_freed_memory()
    program = torch.export.export(module, arguments)
    path = folder / f"{_digest(program, freezing)}.pt2"
    missing = not path.is_file()
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.stem}.{os.getpid()}.pt2")
        with torch._inductor.config.patch(freezing=freezing):
            torch._inductor.aoti_compile_and_package(program, package_path=str(scratch))
        scratch.replace(path)
    return torch._inductor.aoti_load_package(str(path)), missing


def _digest(program: torch.export.ExportedProgram, freezing: bool) -> str:
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
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(value := node.meta.get("val"), Tensor)
    ]
    digest.update(repr((machine, inputs, program.graph_module.code)).encode())
    constants = {**program.state_dict, **program.constants}
    for name, value in sorted(constants.items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
