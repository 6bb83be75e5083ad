"""Operators of the library's own, which inductor calls as they are and does not write anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["cpu_operator"]

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_LIBRARY = torch.library.Library("ppap", "DEF")  # type: ignore[no-untyped-call]


def cpu_operator(schema: str, fake: Callable[..., Any] | None = None) -> Callable[[Kernel], Kernel]:
    """Make a function what ``torch.ops.ppap.NAME`` does on a CPU.

    Args:
        schema: name, arguments and results, as :mod:`torch.library` has them.
        fake: what tracing learns the results' shapes from; the function itself by default.
    """
    name = schema.partition("(")[0]

    def registered(kernel: Kernel) -> Kernel:
        _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"ppap::{name}", fake or kernel)
        return kernel

    return registered
