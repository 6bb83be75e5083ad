"""Compile many kernels for many GPUs: on all cores, and each only once on a machine.

What a compilation found is kept in a file, by everything that it depends on: the source of the
kernel and of what it calls, its specialisation, Triton's version, the target, and how the machine
code is read.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

import triton

from ppap_kernels import cubin
from ppap_kernels.cubin import Resources, Source, compile_for

__all__ = ["Job", "cache_file", "compile_all", "key"]

Job = tuple[Source, int]
"""A kernel, and the architecture to compile it for."""
CHUNK = 8
"""Kernels that a worker compiles before it reads their machine code."""


def cache_file() -> Path:
    """Where results are kept: ``$XDG_CACHE_HOME/ppap/kernels.json``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ppap" / "kernels.json"


def compile_all(jobs: Sequence[Job], workers: int, cache: Path | None = None) -> list[Resources]:
    """What each kernel needs on its target; equal jobs are compiled once.

    Args:
        jobs: kernels and architectures, in any order.
        workers: processes; with 1 this one compiles.
        cache: a file of earlier results, which new ones are added to.

    Raises:
        RuntimeError: under TRITON_INTERPRET, where kernels are not compiled.
    """
    keys = [key(*job) for job in jobs]
    known = _load(cache)
    todo = {name: job for name, job in zip(keys, jobs, strict=True) if name not in known}
    chunks = list(_chunks(todo))
    if workers > 1 and len(chunks) > 1:
        # Not forked: torch and Triton have threads of their own.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(chunks)), context) as pool:
            running = [pool.submit(_compile_chunk, *chunk) for chunk in chunks]
            for done in as_completed(running):
                known |= done.result()
    else:
        for chunk in chunks:
            known |= _compile_chunk(*chunk)
    if todo:
        _save(cache, known)
    return [known[name] for name in keys]


def key(source: Source, arch: int) -> str:
    """Names a compilation by everything that its result depends on."""
    parts = (
        source.kernel.cache_key,
        sorted(source.pointers.items()),
        sorted(source.floats),
        sorted(source.constants.items()),
        sorted(source.unaligned),
        sorted(source.options.items()),
        arch,
        triton.__version__,
        Path(cubin.__file__).read_text(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _chunks(todo: dict[str, Job]) -> Iterator[tuple[list[str], list[Source], int]]:
    """Jobs for one architecture at a time, with kernels by name, for they cannot be pickled."""
    for arch in sorted({arch for _, arch in todo.values()}):
        own = [(name, source) for name, (source, wanted) in todo.items() if wanted == arch]
        for start in range(0, len(own), CHUNK):
            names, sources = zip(*own[start : start + CHUNK], strict=True)
            named = [replace(s, kernel=(s.kernel.__module__, s.kernel.__name__)) for s in sources]
            yield list(names), named, arch


def _compile_chunk(names: list[str], sources: list[Source], arch: int) -> dict[str, Resources]:
    kernels = [source.kernel for source in sources]
    found = [getattr(importlib.import_module(module), name) for module, name in kernels]
    whole = [replace(s, kernel=kernel) for s, kernel in zip(sources, found, strict=True)]
    return dict(zip(names, compile_for(whole, arch), strict=True))


def _load(cache: Path | None) -> dict[str, Resources]:
    if cache is None or not cache.is_file():
        return {}
    try:
        return {name: Resources(**about) for name, about in json.loads(cache.read_text()).items()}
    except (ValueError, TypeError, AttributeError):  # cut off, or of another version
        return {}


def _save(cache: Path | None, known: dict[str, Resources]) -> None:
    if cache is None:
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    scratch = cache.with_name(f"{cache.name}.{os.getpid()}")
    scratch.write_text(json.dumps({name: asdict(about) for name, about in known.items()}))
    scratch.replace(cache)
