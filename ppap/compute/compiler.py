"""Whether graphs can be compiled on this machine."""

from __future__ import annotations

import os
import shutil
import warnings

import torch

__all__ = ["can_compile"]


def can_compile() -> bool:
    """Whether inductor finds what it needs here; says so by a warning if it does not."""
    compiler = os.environ.get("CXX", "g++")
    if torch.cuda.is_available() or shutil.which(compiler):
        return True
    warnings.warn(f"no C++ compiler {compiler!r}: graphs are traced, not compiled", stacklevel=3)
    return False
