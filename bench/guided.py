"""A guided step of every way of doing it, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.reference import ReferenceExperts
from bench.workloads import BATCH, SCALE, bank_of, denoiser
from ppap.compute.cpu import native_bfloat16
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, module_device
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.stepping import Stepper, plain_step
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath

__all__ = [
    "FAST",
    "HALF",
    "HALF_WITHIN",
    "INDEX",
    "SAMPLER",
    "WAYS",
    "classes",
    "guide_of",
    "step_of",
    "stepper",
]

INDEX = 11
"""Of DDIM-25: timestep 440, the third expert's."""
SAMPLER = DDIM(25)
FAST, HALF = "fast path", "fast path, bf16"
WAYS = ("reference", "plain", FAST, *([HALF] if native_bfloat16() else []))
HALF_WITHIN = 0.1
"""Share of the largest value that a step in bfloat16 may be off by: kinks turn some gradients."""


def classes(count: int) -> Tensor:
    """(count,) classes to guide to, in turn."""
    return torch.arange(count) % 10


def guide_of(way: str, bank: ExpertBank, count: int) -> Guide:
    """To (count,) classes; the reference's has networks of its own."""
    if way == "reference":
        return ReferenceExperts(bank).guide(classes(count), SCALE)
    return bank.guide(classes(count), SCALE)


def stepper(
    way: str, predictor: str, device: str = "cpu", batch: int = BATCH, compile: bool = True
) -> Callable[[Tensor], Tensor]:
    """x_t at one timestep -> x at the next.

    Args:
        way: of :data:`WAYS`.
        predictor: of the setting.
        device: where networks are.
        batch: images of x_t.
        compile: whether the fast path compiles.
    """
    network = denoiser(device)
    guide = guide_of(way, bank_of(predictor, device=device), batch)
    if way not in (FAST, HALF):
        return step_of(plain_step, network, guide, batch)
    fast = FastPath(network, batch, compile, precision="bf16" if way == HALF else "fp32")
    return step_of(fast.step, network, guide, batch)


def step_of(
    stepper: Stepper, network: Denoiser, guide: Guide, batch: int = BATCH
) -> Callable[[Tensor], Tensor]:
    """(batch, C, H, W) at one timestep -> at the next, as a stepper computes it."""
    schedule = network.schedule.respace(SAMPLER.spacing)
    device = module_device(network)
    timesteps = torch.full((batch,), int(schedule.timesteps[INDEX]), device=device)

    def run(x_t: Tensor) -> Tensor:
        state = State(x_t, timesteps, network, number=INDEX)
        return stepper(SAMPLER, schedule, INDEX, state, guide, None, None).x

    return run
