"""Measure configurations on the GPU that is here: `python -m ppap_kernels.tune`.

For every shape of the shipped table each candidate is checked against torch and timed, torch's
own way too, and what was fastest is written to `configs/<gpu>.json`, which the dispatcher then
prefers to the defaults. Shapes where torch won are written as such. Convolutions, merging and
the elementwise steps, whose only size is a block of pixels, keep the defaults.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppap_kernels.dispatch import Entry, slug, table

__all__ = ["CANDIDATES", "candidates", "main", "tune", "workload"]

Config = dict[str, int]
Timer = Callable[[Callable[[], Any]], float]
CONFIGS = Path(__file__).parent / "configs"
TOLERANCE = 2e-2
RANK, EXPERTS = 16, 5

CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "low_rank_matmul": {
        "BLOCK_M": (16, 32, 64, 128), "BLOCK_N": (32, 64, 128), "BLOCK_K": (32, 64),
        "num_warps": (4, 8), "num_stages": (2, 3, 4),
    },
    "grouped_outer": {
        "BLOCK_M": (32, 64), "BLOCK_U": (32, 64, 128), "BLOCK_V": (32, 64, 128),
        "num_warps": (4, 8), "num_stages": (2, 3),
    },
    "transfer_loss": {
        "BLOCK_ROWS": (1, 2, 4, 16), "num_warps": (4, 8, 16), "num_stages": (1,),
    },
}  # fmt: skip
CANDIDATES["grouped_low_rank_matmul"] = CANDIDATES["low_rank_matmul"]


def candidates(kernel: str, shipped: Mapping[str, int]) -> Iterator[Config]:
    """The shipped configuration first, then every combination of the kernel's grid."""
    yield dict(shipped)
    grid = CANDIDATES.get(kernel, {})
    for values in itertools.product(*grid.values()):
        config = dict(zip(grid, values, strict=True))
        if config != shipped:
            yield config


def workload(
    kernel: str, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[Config], Tensor], Callable[[], Tensor]] | None:
    """(launch with a configuration, torch's way) at a shape; None for kernels not tuned."""
    from ppap_kernels import triton_elementwise, triton_matmul

    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        drawn: Tensor = torch.randn(size, generator=generator) / float(size[-1]) ** 0.5
        return drawn.to(device, dtype)

    if kernel == "low_rank_matmul":
        m, n, k = (shape[d] for d in ("m", "n", "k"))
        x, p, q, r = normal(m, k), normal(n, k).t(), normal(RANK, k).t(), normal(n, RANK).t()
        return (
            lambda config: triton_matmul.low_rank_matmul(x, p, q, r, None, 0.5, config)[0],
            lambda: torch.addmm(x @ p, x @ q, r, alpha=0.5),
        )
    if kernel == "grouped_low_rank_matmul":
        m, n, k = (shape[d] for d in ("m", "n", "k"))
        tokens = max(1, m // 40)
        x, p = normal(40, tokens, k), normal(n, k).t()
        q, r = normal(EXPERTS, k, RANK), normal(EXPERTS, RANK, n)
        index = (torch.arange(40) * 7 % EXPERTS).to(device)
        return (
            lambda config: triton_matmul.grouped_low_rank_matmul(
                x, p, q, r, None, index, 0.5, config
            )[0],
            lambda: torch.baddbmm(x @ p, torch.bmm(x, q[index]), r[index], alpha=0.5),
        )
    if kernel == "grouped_outer":
        tokens = max(1, shape["m"] // 40)
        u, v = normal(40, tokens, shape["u"]), normal(40, tokens, shape["v"])
        index = (torch.arange(40) * 7 % EXPERTS).to(device)
        own = index[None] == torch.arange(EXPERTS, device=device)[:, None]
        return (
            lambda config: triton_matmul.grouped_outer(u, v, index, EXPERTS, 1.0, config),
            lambda: torch.einsum("eb,btu,btv->euv", own.to(dtype), u, v),
        )
    if kernel == "transfer_loss":
        student, teacher = normal(256, shape["classes"]), normal(256, shape["classes"])
        return (
            lambda config: triton_elementwise.transfer_loss(student, teacher, 0.25, config)[1],
            lambda: (
                student.float().softmax(1) - (teacher.float() / 0.25).softmax(1)
            ).to(dtype) / 256,
        )  # fmt: skip
    return None


def tune(
    kernel: str,
    entry: Entry,
    timer: Timer,
    dtype: torch.dtype,
    device: torch.device,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """The fastest way at one entry's shape, as a line of a table; None for kernels not tuned.

    A candidate that does not compile, does not fit or gives a wrong result is passed over, and
    said to be.
    """
    work = workload(kernel, entry.shape, dtype, device)
    if work is None:
        return None
    launch, plain = work
    expected = plain().double()
    best: tuple[float, Config] | None = None
    for config in candidates(kernel, entry.config):
        try:
            apart = (launch(config).double() - expected).abs().max() / expected.abs().max()
            if not apart <= TOLERANCE:
                report(f"{kernel} {dict(entry.shape)} {config}: wrong by {float(apart):.1e}")
                continue
            microseconds = timer(lambda config=config: launch(config))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 (whatever the compiler or the driver raises)
            report(f"{kernel} {dict(entry.shape)} {config}: {str(error).splitlines()[0]}")
            continue
        if best is None or microseconds < best[0]:
            best = microseconds, config
    torch_microseconds = timer(plain)
    found = {"shape": dict(entry.shape), "torch_us": round(torch_microseconds, 3)}
    if best is None:
        return found | {"backend": "torch", "config": dict(entry.config)}
    backend = "triton" if best[0] <= torch_microseconds else "torch"
    return found | {"backend": backend, "config": best[1], "triton_us": round(best[0], 3)}


def main(arguments: Sequence[str] | None = None, timer: Timer | None = None) -> int:
    """Tune every kernel; return 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m ppap_kernels.tune", description=__doc__)
    parser.add_argument("--kernels", nargs="+", choices=[*CANDIDATES], default=[*CANDIDATES])
    parser.add_argument("--target", type=Path, help="file; by default configs/<gpu>.json")
    options = parser.parse_args(arguments)
    if timer is None:
        if not torch.cuda.is_available():
            print("error: no GPU here; run this where one is", file=sys.stderr)
            return 2
        timer = _microseconds
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name() if on_gpu else "interpreter"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shipped = table("default")
    kernels = {}
    for kernel in options.kernels:
        lines = [tune(kernel, entry, timer, dtype, device, print) for entry in shipped[kernel]]
        kernels[kernel] = [line for line in lines if line is not None]
        print(f"{kernel}: {json.dumps(kernels[kernel])}")
    document = {
        "gpu": name,
        "tuned": True,
        "note": f"Measured in {str(dtype).removeprefix('torch.')}, torch {torch.__version__}.",
        "kernels": {kernel: lines for kernel, lines in kernels.items() if lines},
    }
    target = options.target or CONFIGS / f"{slug(name)}.json"
    target.write_text(json.dumps(document, indent=2) + "\n")
    print(target)
    return 0


def _microseconds(function: Callable[[], Any]) -> float:
    """Median over events around calls that find the L2 flushed."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(function, warmup=10, rep=50, return_mode="median"))


if __name__ == "__main__":
    raise SystemExit(main())
