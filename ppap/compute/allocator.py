"""What a process does with memory that has been freed (glibc's malloc, on a CPU).

PyTorch takes every tensor of a CPU from malloc. As glibc comes, it hands a freed megabyte back to
the system at once, and the next tensor of that size costs a page fault for each of its 4 KiB: a
compiled guided step of 64 small images spent a third of its time in them.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

__all__ = ["keep_freed_memory", "return_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of malloc.h."""
KEPT, MAPPED = 2**28, 2**25
"""Bytes kept at the end of a heap, and of an allocation that is always mapped (glibc's most)."""


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MiB of freed memory per heap, instead of faulting it in anew.

    Results do not change. Nothing is done where malloc is not glibc's, or where the environment
    sets it up already (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).

    Returns:
        Whether it took effect.

    Source:
        mallopt(3).
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = _glibc()
    return libc is not None and all(
        libc.mallopt(option, value)
        for option, value in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, MAPPED))
    )


def return_freed_memory() -> None:
    """Hand freed memory back to the system, once; for before peak memory is measured.

    Source:
        malloc_trim(3).
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # no C library to be had by that name
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
