"""The tables of configurations, measured here, as far as time allows."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from ppap_kernels import tune
from ppap_kernels.dispatch import Entry, slug, table

from bench.gpu.hardware import clock
from bench.gpu.session import Deadline, Record
from bench.gpu.sizes import Sizes

__all__ = ["compile_ahead", "tables", "tuned_entries", "within"]


def tables(record: Record, sizes: Sizes, deadline: Deadline, folder: Path) -> None:
    """Write ``configs/<gpu>.json`` into a folder; every entry gets an equal share of the time."""
    on_gpu = sizes.on.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "rehearsal"
    dtype = _dtype(sizes)
    timer: tune.Timer = partial(tune.microseconds, warmup=2, rep=12) if on_gpu else _by_clock
    captured = partial(tune.captured_microseconds, rep=8) if on_gpu else timer
    entries = list(tuned_entries(sizes))
    found: dict[str, list[dict[str, Any]]] = {}
    target = folder / "configs" / f"{slug(name)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    # The interpreter is not made for threads.
    threads = max(1, len(os.sched_getaffinity(0)) - 2) if sizes.compile else 1
    ahead = compile_ahead(sizes, deadline.share(0.6), threads)
    record.notes["compiled_ahead"] = ahead
    print(f"  {ahead} candidates launched in {threads} threads, {deadline.left:.0f} s left")
    for number, (kernel, entry) in enumerate(entries):
        if deadline.left <= 0:
            record.leave_out(f"{kernel} {dict(entry.shape)}", "no time left")
            continue
        own = deadline.share(1 / (len(entries) - number))
        tried: list[dict[str, int]] = []
        among = within(own, kernel, entry, tried, sizes.candidates)
        said: list[str] = []
        line = record.attempt(
            f"{kernel} {dict(entry.shape)}",
            partial(tune.tune, kernel, entry, timer, dtype, sizes.on, said.append, among, captured),
        )
        if line is None:
            continue
        found.setdefault(kernel, []).append(line)
        every = sum(1 for _ in tune.candidates(kernel, entry.config))
        keys = ("backend", "eager", "torch_us", "triton_us", "config")
        shown = {key: line.get(key) for key in keys}
        row = {"kernel": kernel, **line, "tried": len(tried), "of": every, "passed_over": said}
        record.add(row, f"{kernel} {dict(entry.shape)}: {shown}, {len(tried)} of {every} tried")
        tune.write_table(target, name, dtype, found)


def within(
    deadline: Deadline, kernel: str, entry: Entry, tried: list[dict[str, int]], most: int
) -> Iterator[dict[str, int]]:
    """The shipped configuration, then the others in an order of chance, while time lasts."""
    for config in shuffled(kernel, entry):
        if tried and (deadline.left <= 0 or len(tried) >= most):
            return
        tried.append(config)
        yield config


def shuffled(kernel: str, entry: Entry) -> list[dict[str, int]]:
    """The same order everywhere, so that what was compiled ahead is what is tried."""
    shipped, *others = tune.candidates(kernel, entry.config)
    random.Random(0).shuffle(others)
    return [shipped, *others]


def tuned_entries(sizes: Sizes) -> Iterator[tuple[str, Entry]]:
    """Those of the shipped table; in the rehearsal of small shapes, and one a kernel."""
    for kernel in tune.CANDIDATES:
        every = table("default")[kernel]
        for entry in every if sizes.compile else every[:1]:
            shape = {name: min(size, sizes.largest) for name, size in entry.shape.items()}
            yield kernel, replace(entry, shape=shape)


def compile_ahead(sizes: Sizes, deadline: Deadline, threads: int) -> int:
    """Launch candidates from several threads, so that they are compiled; how many were.

    Those that come first everywhere go first. What does not compile is found again by the tuning.
    """
    launches, lock = _launches(sizes), threading.Lock()

    def work() -> int:
        done = 0
        while deadline.left > 0:
            with lock:
                launch = next(launches, None)
            if launch is None:
                break
            with suppress(Exception):
                launch()
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        return sum(each.result() for each in [pool.submit(work) for _ in range(threads)])


def _launches(sizes: Sizes) -> Iterator[Callable[[], Any]]:
    entries = list(tuned_entries(sizes))
    orders = [shuffled(*entry)[: sizes.candidates] for entry in entries]
    with_operands = [cache(partial(_with_operands, *entry, sizes)) for entry in entries]
    for place in range(max(len(order) for order in orders)):
        for made, order in zip(with_operands, orders, strict=True):
            if place < len(order):
                yield lambda made=made, config=order[place]: made()[0](config)


def _with_operands(kernel: str, entry: Entry, sizes: Sizes) -> Any:
    launches = tune.TUNED[kernel].launches
    assert launches is not None
    return launches(entry.shape, _dtype(sizes), sizes.on)


def _dtype(sizes: Sizes) -> torch.dtype:
    return torch.bfloat16 if sizes.on.type == "cuda" else torch.float32


def _by_clock(function: Callable[[], Any]) -> float:
    return 1e6 * clock(function)
