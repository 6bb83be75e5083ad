"""Guided sampling in every way of doing it: reference, plain, compiled by torch, fast path."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from bench.gpu.sizes import Sizes
from bench.guided import INDEX, classes
from bench.reference import ReferenceExperts
from bench.workloads import SCALE, bank_of, denoiser, noisy
from ppap.compute.cpu import native_bfloat16
from ppap.compute.precision import Precision, autocast
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.stepping import plain_step
from ppap.experts.bank import ExpertBank
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample

__all__ = ["RIVALS", "WAYS", "Guided", "difference", "said"]

WAYS = ("reference", "plain", "fast path", "plain, channels-last")
RIVALS = ("plain, torch.compile",)


class Guided:
    """PPAP-5 with one predictor in one precision.

    Args:
        predictor: of the setting.
        mode: ``"fp32"``, ``"tf32"`` or ``"bf16"``; the flags of the first two are the caller's. A
            CPU without bfloat16 rehearses the last in float32.
        sizes: of batches.
        ways: those wanted, by default :data:`WAYS`.

    Attributes:
        ways: those there are.
        fast: the path that the way of this name runs on.
    """

    def __init__(
        self, predictor: str, mode: str, sizes: Sizes, ways: tuple[str, ...] | None = None
    ) -> None:
        self.sizes = sizes
        rehearsed = sizes.on.type == "cpu" and not native_bfloat16()
        self.precision: Precision = "bf16" if mode == "bf16" and not rehearsed else "fp32"
        self.sampler = DDIM(min(sizes.steps, 25))
        network, bank = denoiser(sizes.device), bank_of(predictor, device=sizes.device)
        self.fast = FastPath(network, sizes.batch, sizes.compile, precision=self.precision)
        self._models: dict[str, tuple[Denoiser, ExpertBank | ReferenceExperts]] = {}
        makers: dict[str, Callable[[], tuple[Denoiser, ExpertBank | ReferenceExperts]]] = {
            "reference": lambda: (network, ReferenceExperts(bank)),
            "plain": lambda: (network, bank),
            "fast path": lambda: (network, bank),
            "plain, channels-last": lambda: _in_channels_last(network, bank),
            "plain, torch.compile": lambda: _compiled(network, bank),
        }
        ways = WAYS if ways is None else ways
        self.ways = ways if sizes.compile else tuple(w for w in ways if "compile" not in w)
        for way in self.ways:
            self._models[way] = makers[way]()

    def guide(self, way: str, count: int) -> Guide:
        model = self._models[way][1]
        return model.guide(classes(count), SCALE)

    def sample(self, way: str, count: int, guided: bool = True) -> Tensor:
        """(count, 1, 32, 32) images, as a user gets them."""
        return sample(
            self._models[way][0],
            count,
            self.guide(way, count) if guided else None,
            self.sampler,
            batch=self.sizes.batch,
            precision=self.precision,
            fast=self.fast if way == "fast path" else False,
        )

    def step(self, way: str, guided: bool = True) -> Callable[[], Tensor]:
        """A call that makes one step of a full batch."""
        network, count = self._models[way][0], self.sizes.batch
        schedule = network.schedule.respace(self.sampler.spacing)
        index = min(INDEX, len(schedule) - 1)
        x_t = noisy(count, self.sizes.device)
        timesteps = torch.full((count,), int(schedule.timesteps[index]), device=x_t.device)
        guide = self.guide(way, count) if guided else None
        stepper = self.fast.step if way == "fast path" else plain_step

        @torch.no_grad()
        def run() -> Tensor:
            state = State(x_t, timesteps, network, number=index)
            with autocast(self.precision, x_t.device):
                return stepper(self.sampler, schedule, index, state, guide, None, None).x

        return run


def _in_channels_last(network: Denoiser, bank: ExpertBank) -> tuple[Denoiser, ExpertBank]:
    network, bank = copy.deepcopy(network), copy.deepcopy(bank)
    for module in (network, bank):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, bank


def _compiled(network: Denoiser, bank: ExpertBank) -> tuple[Denoiser, ExpertBank]:
    """Both networks compiled in place, as a user would: the gradient is autograd's."""
    network, bank = copy.deepcopy(network), copy.deepcopy(bank)
    network.network.compile(dynamic=False)
    bank.predictor.network.compile(dynamic=False)
    return network, bank


@contextmanager
def said() -> Iterator[list[str]]:
    """What the library logs meanwhile: that a network is run as it is, above all."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage()[:2000])

    listener, logger = Listener(logging.WARNING), logging.getLogger("ppap")
    logger.addHandler(listener)
    try:
        yield lines
    finally:
        logger.removeHandler(listener)


def difference(found: Tensor, expected: Tensor) -> dict[str, Any]:
    """How far (B, ...) images are from others, as shares of the largest value."""
    apart = (found.double() - expected.double()).flatten(1).abs().amax(1)
    apart = apart / expected.double().abs().max().clamp(min=1e-30)
    quantile = cast(float, apart.median().item())
    return {
        "median": quantile,
        "largest": float(apart.max()),
        "share_within_1e-3": float((apart <= 1e-3).double().mean()),
    }
