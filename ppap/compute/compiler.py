"""Graphs compiled when they are first called, and whether that is possible on this machine."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ppap.compute.cpu import instruction_set

__all__ = ["can_compile", "has_compiler", "just_in_time"]


def can_compile() -> bool:
    """Whether inductor finds what it needs here; says so by a warning if it does not."""
    if has_compiler():
        return True
    warnings.warn(f"no C++ compiler {_compiler()!r}: graphs are traced, not compiled", stacklevel=3)
    return False


def has_compiler() -> bool:
    """Whether inductor finds what it needs here."""
    return torch.cuda.is_available() or shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def just_in_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, compiled as one graph at the shapes that it is called with.

    Inductor keeps the code that it writes on disk. It looks it up by the graph and the versions,
    not by the CPU, though the code counts on one length of vectors: what was written for AVX-512
    and is then built for AVX2 computes half of each vector (PyTorch 2.14). So the name of the
    instruction set goes into the look-up, beside whatever tag the user has set.
    """

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    # Dynamo counts compilations by code object and stops after a few: each function has its own.
    call.__code__ = call.__code__.replace()
    return torch.compile(call, fullgraph=True, dynamic=False, backend=_inductor)


def _inductor(graph: fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    settings: Any = torch.compiler.config  # its methods are made at run time
    tag = f"{settings.cache_key_tag} {instruction_set()}".strip()
    eager_draws = torch._inductor.config.patch(fallback_random=True)
    with settings.patch(cache_key_tag=tag), eager_draws:
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("inductor")(graph, examples)
    return compiled
