"""Measure configurations on the GPU that is here: `python -m ppap_kernels.tune`.

For every shape of the shipped table each candidate is checked against torch and timed in a CUDA
graph, torch's own way too; the kernel is timed as an ordinary call through its operator, whose cost
no configuration changes, against torch's. What was fastest is written to
`configs/<gpu>.json`, by which the dispatcher chooses. Shapes where torch won are written as such.
Convolutions, merging and the elementwise steps, whose only size is a block of pixels, keep the
defaults. Whatever else the GPU's shipped table says, of those kernels and in other element types,
stays in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ppap_kernels.dispatch import Entry, slug, table
from ppap_kernels.operations import KERNELS

__all__ = [
    "CANDIDATES",
    "candidates",
    "captured_microseconds",
    "main",
    "microseconds",
    "tune",
    "write_table",
]

Config = dict[str, int]
Timer = Callable[[Callable[[], Any]], float]
CONFIGS = Path(__file__).parent / "configs"
TOLERANCE = 2e-2
KEPT = " Other lines: "
TUNED = {kernel.name: kernel for kernel in KERNELS if kernel.launches}
CANDIDATES = {name: kernel.candidates for name, kernel in TUNED.items()}


def candidates(kernel: str, shipped: Mapping[str, int]) -> Iterator[Config]:
    """The shipped configuration first, then every combination of the kernel's grid."""
    yield dict(shipped)
    grid = CANDIDATES.get(kernel, {})
    for values in itertools.product(*grid.values()):
        config = dict(zip(grid, values, strict=True))
        if config != shipped:
            yield config


def tune(
    kernel: str,
    entry: Entry,
    timer: Timer,
    dtype: torch.dtype,
    device: torch.device,
    report: Callable[[str], None] = lambda line: None,
    among: Iterable[Config] | None = None,
    captured: Timer | None = None,
) -> dict[str, Any] | None:
    """The fastest way at one entry's shape, as a line of a table; None for kernels not tuned.

    A candidate that does not compile, does not fit or gives a wrong result is passed over, and
    said to be.

    Args:
        kernel: name in the tables.
        entry: its shape and shipped configuration.
        timer: microseconds of an ordinary call, its launch from Python included.
        dtype: of the operands.
        device: where they are.
        report: told what is passed over.
        among: configurations to try, by default all of :func:`candidates`.
        captured: microseconds of a call in a CUDA graph, by which candidates are compared; by
            default the ordinary call's.
    """
    launches = TUNED[kernel].launches if kernel in TUNED else None
    if launches is None:
        return None
    captured = timer if captured is None else captured
    launch, plain, called = launches(entry.shape, dtype, device)
    expected = plain().double()
    best: tuple[float, Config] | None = None
    for config in candidates(kernel, entry.config) if among is None else among:
        try:
            apart = (launch(config).double() - expected).abs().max() / expected.abs().max()
            if not apart <= TOLERANCE:
                report(f"{kernel} {dict(entry.shape)} {config}: wrong by {float(apart):.1e}")
                continue
            microseconds = captured(lambda config=config: launch(config))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 (whatever the compiler or the driver raises)
            report(f"{kernel} {dict(entry.shape)} {config}: {str(error).splitlines()[0]}")
            continue
        if best is None or microseconds < best[0]:
            best = microseconds, config
    of_torch, of_torch_eager = captured(plain), timer(plain)
    found = {
        "shape": dict(entry.shape),
        "dtypes": [str(dtype).removeprefix("torch.")],
        "torch_us": round(of_torch, 3),
        "torch_eager_us": round(of_torch_eager, 3),
    }
    if best is None:
        return found | {"backend": "torch", "eager": "torch", "config": dict(entry.config)}
    own, config = best
    own_eager = timer(called)
    return found | {
        "backend": "triton" if own <= of_torch else "torch",
        "eager": "triton" if own_eager <= of_torch_eager else "torch",
        "config": config,
        "triton_us": round(own, 3),
        "triton_eager_us": round(own_eager, 3),
    }


def main(arguments: Sequence[str] | None = None, timer: Timer | None = None) -> int:
    """Tune every kernel; return 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m ppap_kernels.tune", description=__doc__)
    parser.add_argument("--kernels", nargs="+", choices=[*CANDIDATES], default=[*CANDIDATES])
    parser.add_argument("--target", type=Path, help="file; by default configs/<gpu>.json")
    options = parser.parse_args(arguments)
    on_gpu, captured = torch.cuda.is_available(), timer
    if timer is None:
        if not on_gpu:
            print("error: no GPU here; run this where one is", file=sys.stderr)
            return 2
        timer, captured = microseconds, captured_microseconds
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name() if on_gpu else "interpreter"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shipped = table("default")
    kernels = {}
    for kernel in options.kernels:
        lines = [
            tune(kernel, entry, timer, dtype, device, print, captured=captured)
            for entry in shipped[kernel]
        ]
        kernels[kernel] = [line for line in lines if line is not None]
        print(f"{kernel}: {json.dumps(kernels[kernel])}")
    target = options.target or CONFIGS / f"{slug(name)}.json"
    write_table(target, name, dtype, {kernel: lines for kernel, lines in kernels.items() if lines})
    print(target)
    return 0


def write_table(
    target: Path, gpu: str, dtype: torch.dtype, kernels: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Write a table of measurements as the dispatcher reads it.

    Lines of the GPU's shipped table stay, but for those of a kernel and element type that was
    measured now: the dispatcher reads one table for a GPU.

    Args:
        target: the file.
        gpu: as torch.cuda.get_device_name gives it.
        dtype: of the operands.
        kernels: lines that :func:`tune` gave, by kernel.
    """
    kind = str(dtype).removeprefix("torch.")
    note = f"Measured in {kind}, torch {torch.__version__}."
    merged = {kernel: list(lines) for kernel, lines in kernels.items()}
    shipped = CONFIGS / f"{slug(gpu)}.json"
    if shipped.is_file():
        earlier = json.loads(shipped.read_text())
        for kernel, lines in earlier["kernels"].items():
            now = merged.setdefault(kernel, [])
            now += [line for line in lines if not (now and kind in line["dtypes"])]
        note += KEPT + earlier["note"].split(KEPT)[-1]
    document = {"gpu": gpu, "tuned": True, "note": note, "kernels": merged}
    target.write_text(json.dumps(document, indent=2) + "\n")


def microseconds(function: Callable[[], Any], warmup: int = 10, rep: int = 50) -> float:
    """Median over events around calls that find the L2 flushed.

    Args:
        function: launches work on the GPU.
        warmup: milliseconds before, about.
        rep: milliseconds that are timed, about.
    """
    from triton.testing import do_bench

    return 1e3 * float(do_bench(function, warmup=warmup, rep=rep, return_mode="median"))


def captured_microseconds(function: Callable[[], Any], rep: int = 50) -> float:
    """Median over replays of a CUDA graph of calls, for about ``rep`` milliseconds."""
    from triton.testing import do_bench_cudagraph

    return 1e3 * float(do_bench_cudagraph(function, rep=rep, return_mode="median"))


if __name__ == "__main__":
    raise SystemExit(main())
