"""Guided steps of DDIM and DDPM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import ppap_kernels as kernels
from ppap_kernels.dispatch import Backend, Entry
from ppap_kernels.operations.description import (
    DTYPES,
    Case,
    Kernel,
    Problem,
    Tensors,
    Traffic,
    Way,
    normal,
    ours,
    source_of,
)

if TYPE_CHECKING:
    from ppap_kernels.cubin import Source

__all__ = ["DDIM", "DDPM", "ddim_problem", "ddpm_problem"]

PASSES_OF_STEP = 5
"""Whole images read or written: x_t, noise estimate, gradient, noise, result."""


def _images(batch: int, channels: int, side: int, *names: str) -> Callable[..., Tensors]:
    def make(dtype: torch.dtype, on: torch.device) -> Tensors:
        found = normal(dtype, on, **dict.fromkeys(names, (batch, channels, side, side)))
        precise = torch.promote_types(dtype, torch.float32)
        levels = torch.linspace(0.2, 0.8, batch, device=on, dtype=precise)
        return found | {"level": levels, "before": levels + 0.1, "sigma": 0.1 * levels}

    return make


def ddim_problem(batch: int, channels: int, side: int, gpu: bool) -> Problem:
    """A guided step of DDIM with noise, on square images."""

    def eager(t: Tensors) -> Tensor:
        level, before, sigma = (t[k][:, None, None, None] for k in ("level", "before", "sigma"))
        x, eps = t["x"].to(level.dtype), t["eps"].to(level.dtype)
        x_0 = ((x - (1 - level).sqrt() * eps) / level.sqrt()).clamp(-1, 1)
        eps = (x - level.sqrt() * x_0) / (1 - level).sqrt()
        eps = eps - (1 - level).sqrt() * t["gradient"]
        x_0 = (x - (1 - level).sqrt() * eps) / level.sqrt()
        found = before.sqrt() * x_0 + (1 - before - sigma**2).sqrt() * eps + sigma * t["noise"]
        return found.to(t["x"].dtype)

    def step(t: Tensors, backend: Backend) -> Tensor:
        return kernels.guided_ddim_step(
            t["x"], t["eps"], t["level"], t["before"], t["sigma"], t["gradient"], t["noise"],
            backend=backend,
        )  # fmt: skip

    size = batch * channels * side * side
    make = _images(batch, channels, side, "x", "eps", "gradient", "noise")
    shape = f"{batch}x{channels}x{side}x{side}"
    ways = (*ours(step, gpu), Way("torch eager", eager))
    return Problem(
        "guided_ddim_step",
        shape,
        make,
        eager,
        ways,
        (),
        lambda e: PASSES_OF_STEP * e * size,
        20 * size,
    )


def ddpm_problem(batch: int, channels: int, side: int, gpu: bool) -> Problem:
    """A guided step of DDPM with noise, on square images."""

    def eager(t: Tensors) -> Tensor:
        level, before, sigma = (t[k][:, None, None, None] for k in ("level", "before", "sigma"))
        x = t["x"].to(level.dtype)
        x_0 = ((x - (1 - level).sqrt() * t["eps"]) / level.sqrt()).clamp(-1, 1)
        mean = before * x_0 + (1 - before) * x + sigma.exp() * t["gradient"]
        return (mean + (0.5 * sigma).exp() * t["noise"]).to(t["x"].dtype)

    def step(t: Tensors, backend: Backend) -> Tensor:
        return kernels.guided_ddpm_step(
            t["x"], t["eps"], t["level"], t["before"], 1 - t["before"], t["sigma"], None,
            t["gradient"], t["noise"], backend=backend,
        )  # fmt: skip

    size = batch * channels * side * side
    make = _images(batch, channels, side, "x", "eps", "gradient", "noise")
    shape = f"{batch}x{channels}x{side}x{side}"
    ways = (*ours(step, gpu), Way("torch eager", eager))
    return Problem(
        "guided_ddpm_step",
        shape,
        make,
        eager,
        ways,
        (),
        lambda e: PASSES_OF_STEP * e * size,
        12 * size,
    )


def _ddim_case(entry: Entry, dtype: str) -> Case:
    from ppap_kernels import triton_elementwise

    names = ("x_t", "eps", "gradient", "noise", "out")
    constants = dict.fromkeys(("CLIP", "GRADIENT", "NOISE"), True)
    pointers = dict.fromkeys(names, dtype) | dict.fromkeys(
        ("signal", "signal_prev", "sigma"), "fp32"
    )
    source = source_of(
        triton_elementwise.guided_ddim_kernel, entry, pointers, constants, set(), set()
    )
    return _step("guided_ddim_step", entry, dtype, source, PASSES_OF_STEP, 40)


def _ddpm_case(entry: Entry, dtype: str, pixelwise: bool) -> Case:
    from ppap_kernels import triton_elementwise

    names = ("x_t", "eps", "gradient", "noise", "out")
    constants = dict.fromkeys(("CLIP", "GRADIENT", "NOISE"), True)
    constants |= {"PIXELWISE": pixelwise, "VARIANCE": not pixelwise}
    vectors = ("signal", "x0_weight", "x_t_weight", "variance")
    pointers = dict.fromkeys(names, dtype) | dict.fromkeys(vectors, "fp32")
    pointers["log_variance"] = dtype if pixelwise else "fp32"
    ones = set() if pixelwise else {"log_variance_b"}
    source = source_of(
        triton_elementwise.guided_ddpm_kernel, entry, pointers, constants, ones, set()
    )
    name = "guided_ddpm_step" + (" learned variance" if pixelwise else "")
    passes, eager = (PASSES_OF_STEP + 1, 34) if pixelwise else (PASSES_OF_STEP, 26)
    return _step(name, entry, dtype, source, passes, eager)


def _step(name: str, entry: Entry, dtype: str, source: Source, passes: int, eager: int) -> Case:
    """A case that moves whole images `passes` times, the eager sequence `eager` times."""
    batch, pixels = entry.shape["batch"], entry.shape["pixels"]
    images = batch * pixels * DTYPES[dtype]
    traffic = Traffic(passes * images, passes * images, eager * images)
    return Case(name, f"batch={batch} pixels={pixels}", dtype, source, traffic)


def _ddim_cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    del rank
    yield _ddim_case(entry, dtype)


def _ddpm_cases(entry: Entry, dtype: str, rank: int) -> Iterator[Case]:
    del rank
    yield _ddpm_case(entry, dtype, pixelwise=False)
    yield _ddpm_case(entry, dtype, pixelwise=True)


DDIM = Kernel("guided_ddim_step", _ddim_cases, ranked=False)
DDPM = Kernel("guided_ddpm_step", _ddpm_cases, ranked=False)
