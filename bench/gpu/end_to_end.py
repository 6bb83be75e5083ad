"""Guided steps, whole calls to ``sample``, synthesis and training steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import training_steps
from bench.gpu.guided import Guided, difference, said
from bench.gpu.hardware import clock, interleaved, peak_mib, precision, row_of
from bench.gpu.session import Deadline, Record
from bench.gpu.sizes import Sizes
from bench.guided import classes
from bench.workloads import SCALE, bank_of, denoiser
from ppap.compute.precision import autocast
from ppap.diffusion.ddim import DDIM
from ppap.fast.sampling import sample

__all__ = ["MODES", "compile_once", "compile_training_once", "end_to_end"]

MODES = ("tf32", "fp32", "bf16")
REFERENCE = "reference"
MOST_SECONDS = 6.0
"""Of the rounds of one comparison."""


def end_to_end(record: Record, sizes: Sizes, deadline: Deadline) -> None:
    """As much as there is time for, what matters most first."""
    first, *others = sizes.predictors
    items: list[tuple[str, Callable[[], None]]] = [
        (f"guided {first} tf32", partial(guided, record, first, "tf32", sizes, deadline)),
        ("repeated calls", partial(repeated_calls, record, first, sizes, deadline)),
    ]
    for mode in MODES:
        for predictor in sizes.predictors:
            if (predictor, mode) != (first, "tf32"):
                run = partial(guided, record, predictor, mode, sizes, deadline)
                items.append((f"guided {predictor} {mode}", run))
    for predictor in sizes.predictors:
        for batch in sizes.training:
            run = partial(training, record, predictor, batch, sizes, deadline)
            items.append((f"training {predictor} batch {batch}", run))
    order = [0, 1, 2, len(items) - 1 - (len(sizes.training) > 1)] if others else []
    items = [items[n] for n in order] + [x for n, x in enumerate(items) if n not in order]
    for name, run in items:
        if deadline.left <= 0:
            record.leave_out(name, "no time left")
            continue
        torch._dynamo.reset()
        began = time.monotonic()
        record.attempt(name, run)
        record.notes.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
    torch._dynamo.reset()


def compile_once(predictor: str, mode: str, way: str, sizes: Sizes) -> None:
    """Fill the caches on disk."""
    with precision(mode):
        work = Guided(predictor, mode, sizes)
        work.step(way)()
        if way == "fast path":
            work.step(way, guided=False)()


def guided(record: Record, predictor: str, mode: str, sizes: Sizes, deadline: Deadline) -> None:
    """One predictor in one precision: agreement, a step, whole calls, synthesis, memory."""
    with precision(mode), said() as warnings:
        work = Guided(predictor, mode, sizes)
        about = {"predictor": predictor, "mode": mode, "batch": sizes.batch}
        if mode == "bf16":  # the fast path computes in float32
            ways = [way for way in work.ways if way != "fast path"]
        else:
            ways = list(work.ways)
        steps = {way: work.step(way) for way in ways}
        first = {way: record.attempt(f"{way}, {about}", partial(clock, steps[way])) for way in ways}
        ways = [way for way in ways if first[way] is not None]
        after = {way: steps[way]() for way in ways}
        images = {}
        for way in ways:
            images[way] = record.attempt(
                f"sample, {way}, {about}", partial(work.sample, way, sizes.few)
            )
        agreement = {
            way: {
                "step": difference(after[way], after[REFERENCE]),
                "images": None
                if images[way] is None
                else difference(images[way], images[REFERENCE]),
                "first_step_s": round(first[way], 3),
            }
            for way in ways
        }
        row = {"what": "agreement with the reference", **about, "ways": agreement}
        row["compilations"], row["logged"] = work.fast.compilations, warnings
        fast = agreement.get("fast path")
        record.add(row, f"{predictor} {mode}: fast path apart {fast}; logged {len(warnings)}")
        ways = [way for way in ways if images[way] is not None]
        compare(
            record, f"guided step, {sizes.batch}", {w: steps[w] for w in ways}, about,
            sizes.batch, sizes, deadline,
        )  # fmt: skip
        for what, count, guide in (
            ("guided sample", sizes.few, True),
            ("synthesis", sizes.few, False),
            ("guided sample", sizes.many, True),
        ):
            if count == sizes.many:
                wanted = [w for w in ways if w in (REFERENCE, "plain", "fast path")]
                if mode == "fp32":
                    continue
            else:
                wanted = ways
            calls = {w: partial(work.sample, w, count, guide) for w in wanted}
            if not guide:
                calls.pop(REFERENCE)  # nothing differs without a guide
            name = f"{what}, DDIM-{sizes.steps}, {count} images"
            compare(record, name, calls, about, count, sizes, deadline)


def compare(
    record: Record,
    what: str,
    ways: dict[str, Callable[[], Any]],
    about: dict[str, Any],
    images: int,
    sizes: Sizes,
    deadline: Deadline,
) -> None:
    """Rows of all ways, timed in turn against the first of them."""
    seconds, peaks = {}, {}
    for way, call in ways.items():
        if deadline.left <= 0:
            record.leave_out(f"{what} {about}", "no time left")
            return
        peaks[way] = peak_mib(call)
        seconds[way] = clock(call)
    spare = min(MOST_SECONDS, max(0.0, deadline.left))
    rounds = max(1, min(sizes.rounds, int(spare / (2 * sum(seconds.values())))))
    found = interleaved(ways, rounds)
    reference = next(iter(ways))
    line = []
    for way, own in found.items():
        row = row_of(own, found[reference], images)
        kept = {"what": what, "way": way, **about, **row, "peak_mib": peaks[way]}
        record.add(kept | {"against": reference})
        line.append(f"{way} {row['ms']:.2f} ms x{row['ratio']:.2f}")
    print(f"  {what}, {' '.join(str(value) for value in about.values())}: {'; '.join(line)}")


def repeated_calls(record: Record, predictor: str, sizes: Sizes, deadline: Deadline) -> None:
    """Equal calls one after another, each as a user makes it, with a guide of its own."""
    network, bank = denoiser(sizes.device), bank_of(predictor, device=sizes.device)
    sampler = DDIM(sizes.steps)

    def call(fast: bool | None) -> Any:
        guide = bank.guide(classes(sizes.few), SCALE)
        return sample(network, sizes.few, guide, sampler, batch=sizes.batch, fast=fast)

    expected = call(False)
    plain_s = round(clock(lambda: call(False)), 4)
    record.notes["plain_call_s"] = plain_s
    line = []
    for number in range(1, sizes.calls + 1):
        if deadline.left <= 0:
            record.leave_out(f"call {number} of {sizes.calls}", "no time left")
            return
        row: dict[str, Any] = {"what": "repeated calls", "call": number, "plain_s": plain_s}
        began = time.monotonic()
        with said() as warnings:
            try:
                found = call(None)
                row["difference"] = difference(found, expected)
            except Exception as error:  # noqa: BLE001 this is what is looked for
                record.fail(f"call {number} of {sizes.calls}", error)
                row["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
        row["seconds"] = round(time.monotonic() - began, 3)
        row["logged"] = warnings
        record.add(row)
        line.append(f"{row['seconds']}{'!' if 'failed' in row or warnings else ''}")
    print(f"  seconds of call 1 to {sizes.calls}: {' '.join(line)} (plain {plain_s})")


def compile_training_once(predictor: str, batch: int, sizes: Sizes) -> None:
    """Fill the caches on disk."""
    with precision("tf32"):
        _, step = training_steps.stepper("joint, compiled", predictor, sizes.device, batch)
        step()


def training(record: Record, predictor: str, batch: int, sizes: Sizes, deadline: Deadline) -> None:
    """A step of five experts, TF32; the loop and the grouped step in bfloat16 as well."""
    about = {"predictor": predictor, "mode": "tf32", "batch": batch}
    names = [way for way in training_steps.WAYS if sizes.compile or way != "joint, compiled"]
    with precision("tf32"):
        ways: dict[str, Callable[[], Any]] = {}
        losses = {}
        for way in names:
            made = record.attempt(
                f"training, {way}, {about}",
                partial(training_steps.stepper, way, predictor, sizes.device, batch),
            )
            if made is None or deadline.left <= 0:
                continue
            step = made[1]
            began = time.monotonic()
            loss = record.attempt(f"training step, {way}, {about}", step)
            if loss is not None:
                ways[way] = step
                losses[way] = {"loss": loss, "first_step_s": round(time.monotonic() - began, 2)}
        for way in ("loop over experts", "grouped"):
            if way in ways:
                half = partial(_half, ways[way], sizes)
                if record.attempt(f"training, {way}, bf16, {about}", half) is not None:
                    ways[f"{way}, bf16"] = half
        record.add({"what": "first training losses", **about, "ways": losses}, f"{losses}")
        compare(record, "training step", ways, about, batch, sizes, deadline)


def _half(step: Callable[[], float], sizes: Sizes) -> float:
    with autocast("bf16", sizes.on) if sizes.compile else autocast("fp32", sizes.on):
        return step()
