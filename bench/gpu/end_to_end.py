"""Guided steps, whole calls to ``sample``, synthesis and training steps."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import training_steps
from bench.gpu.guided import RIVALS, Guided, difference, said
from bench.gpu.hardware import clock, interleaved, peak_mib, precision, row_of
from bench.gpu.session import Deadline, Record
from bench.gpu.sizes import Sizes
from bench.guided import classes
from bench.workloads import SCALE, bank_of, denoiser
from ppap.compute.precision import autocast
from ppap.diffusion.ddim import DDIM
from ppap.fast.sampling import sample

__all__ = ["compile_once", "compile_training_once", "end_to_end"]

REFERENCE = "reference"
MOST_SECONDS = 6.0
"""Of the rounds of one comparison."""


def end_to_end(record: Record, sizes: Sizes, deadline: Deadline) -> None:
    """As much as there is time for, what matters most first."""
    first, last = sizes.predictors[0], sizes.predictors[-1]
    small, large = sizes.training[0], sizes.training[-1]
    about = record, sizes, deadline
    items: dict[str, Callable[[], None]] = {
        f"guided {first} tf32": partial(guided, *about, first, "tf32"),
        "repeated calls": partial(repeated_calls, *about, first),
        f"guided {last} tf32": partial(guided, *about, last, "tf32"),
        f"training {first} {small}": partial(training, *about, first, small),
        f"guided {first} fp32": partial(guided, *about, first, "fp32"),
        f"guided {first} bf16": partial(guided, *about, first, "bf16"),
        f"rival {first}": partial(rival, *about, first),
        f"guided {last} fp32": partial(guided, *about, last, "fp32"),
        f"guided {last} bf16": partial(guided, *about, last, "bf16"),
        f"training {last} {small}": partial(training, *about, last, small),
        f"training {first} {large}": partial(training, *about, first, large),
        f"rival {last}": partial(rival, *about, last),
        f"training {last} {large}": partial(training, *about, last, large),
    }
    if not sizes.compile:  # the rehearsal of TF32 says it all
        items = {name: run for name, run in items.items() if not name.endswith("fp32")}
    for name, run in items.items():
        if deadline.left <= 0:
            record.leave_out(name, "no time left")
            continue
        torch._dynamo.reset()
        gc.collect()  # graphs hold their memory until they are gone
        began = time.monotonic()
        record.attempt(name, run)
        record.notes.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
    torch._dynamo.reset()


def compile_once(predictor: str, mode: str, way: str, sizes: Sizes) -> None:
    """Fill the caches on disk."""
    with precision(mode):
        Guided(predictor, mode, sizes, (way,)).step(way)()


def guided(record: Record, sizes: Sizes, deadline: Deadline, predictor: str, mode: str) -> None:
    """One predictor in one precision: agreement, a step, whole calls, synthesis, memory."""
    with precision(mode), said() as warnings:
        work = Guided(predictor, mode, sizes)
        about = {"predictor": predictor, "mode": mode, "batch": sizes.batch}
        ways = agreement(record, work, about, warnings)
        steps = {way: work.step(way) for way in ways}
        name = f"guided step, {sizes.batch}"
        compare(record, name, steps, about, sizes.batch, sizes, deadline)
        for guide in (True, False):
            # Without a guide the reference and the plain path are the same.
            own = {w: partial(work.sample, w, sizes.few, guide) for w in ways[not guide :]}
            what = f"{'guided' if guide else 'unguided'} sample, DDIM-{sizes.steps}"
            compare(record, f"{what}, {sizes.few}", own, about, sizes.few, sizes, deadline)
        seconds = sum(clock(partial(work.sample, way, sizes.few)) for way in ways)
        long = f"guided sample, DDIM-{sizes.steps}, {sizes.many}"
        if 3 * seconds * sizes.many / sizes.few > deadline.left / 3:
            record.leave_out(f"{long} {about}", "no time left")
        else:
            own = {w: partial(work.sample, w, sizes.many) for w in ways}
            compare(record, long, own, about, sizes.many, sizes, deadline)


def agreement(
    record: Record, work: Guided, about: dict[str, Any], warnings: list[str]
) -> list[str]:
    """The ways that work, once their steps and images were compared with the reference's."""
    steps, images, rows, ways = {}, {}, {}, []
    for way in work.ways:
        step = work.step(way)
        began = time.monotonic()
        steps[way] = record.attempt(f"step, {way}, {about}", step)
        first = round(time.monotonic() - began, 3)
        call = partial(work.sample, way, work.sizes.few)
        images[way] = record.attempt(f"sample, {way}, {about}", call)
        if steps[way] is None or images[way] is None:
            continue
        ways.append(way)
        rows[way] = {
            "step": difference(steps[way], steps[REFERENCE]),
            "images": difference(images[way], images[REFERENCE]),
            "first_step_s": first,
        }
    row = {"what": "agreement with the reference", **about, "ways": rows}
    row |= {"compilations": work.fast.compilations, "logged": list(warnings)}
    told = {way: f"{found['step']['largest']:.1e}" for way, found in rows.items()}
    record.add(row, f"steps apart {told}; logged: {warnings}")
    return ways


def rival(record: Record, sizes: Sizes, deadline: Deadline, predictor: str) -> None:
    """The plain path with both networks through torch.compile."""
    with precision("tf32"):
        work = Guided(predictor, "tf32", sizes, ("plain", *RIVALS))
        about = {"predictor": predictor, "mode": "tf32", "batch": sizes.batch}
        ways = [
            way for way in work.ways
            if record.attempt(f"step, {way}, {about}", work.step(way)) is not None
        ]  # fmt: skip
        steps = {way: work.step(way) for way in ways}
        calls = {way: partial(work.sample, way, sizes.few) for way in ways}
        compare(record, f"guided step, {sizes.batch}", steps, about, sizes.batch, sizes, deadline)
        name = f"guided sample, DDIM-{sizes.steps}, {sizes.few}"
        compare(record, name, calls, about, sizes.few, sizes, deadline)


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
        seconds[way], peaks[way] = peak_mib(call)
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


def repeated_calls(record: Record, sizes: Sizes, deadline: Deadline, predictor: str) -> None:
    """Equal calls one after another, each as a user makes it, with a guide of its own."""
    network, bank = denoiser(sizes.device), bank_of(predictor, device=sizes.device)
    sampler = DDIM(sizes.steps)

    def call(fast: bool | None) -> Any:
        guide = bank.guide(classes(sizes.few), SCALE)
        return sample(network, sizes.few, guide, sampler, batch=sizes.batch, fast=fast)

    own = deadline.share(0.4)
    expected = call(False)
    plain_s = round(clock(lambda: call(False)), 4)
    record.notes["plain_call_s"] = plain_s
    line = []
    for number in range(1, sizes.calls + 1):
        if deadline.left <= 0 or (own.left <= 0 and number > 5):
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


def training(record: Record, sizes: Sizes, deadline: Deadline, predictor: str, batch: int) -> None:
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
