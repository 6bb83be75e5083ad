"""The check of an optimised twin against the original that it stands for.

A twin is a network's other form: grouped, with layers put in place, folded, traced or compiled. It
is compared once, on the first real input, and dropped with one logged line if it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ppap.compute.precision import HALF, full_float32
from ppap.files.checkpoints import one_line

__all__ = [
    "FirstUse",
    "agree",
    "as_near",
    "computes_in_half",
    "disturbed",
    "joined",
    "values_and_gradient",
]

EXACT, ROUNDING, HALF_ROUNDING = 1e-9, 5e-3, 5e-2
"""Relative errors that are taken for rounding: in float64, in float32, TF32's included, and in half
precision."""
KINKED = 0.25
"""Share of samples whose gradient may differ, for a kink such as a ReLU's turns rounding into
another gradient now and then."""

LEEWAY = 2.0
"""How many times the error of one computation in half precision another's may be."""
SMALL_IN_HALF, SMALL_IN_TF32 = 0.1, 0.01
"""The relative error of a gradient in half precision, and in TF32, that is no reason to look for
another's."""

Function = Callable[[Tensor], Tensor]


class FirstUse:
    """Says whether a twin may be used, after comparing it with its original once.

    Args:
        what: of the twin, for the logged line.
        logger: where the line goes.
        half: whether the original computes in half precision, whatever it returns.

    Attributes:
        dropped: whether the twin was found wanting.
    """

    def __init__(self, what: str, logger: logging.Logger, half: bool = False) -> None:
        self.what = what
        self.logger = logger
        self.half = half
        self.dropped = False
        self._compared: set[Hashable] = set()

    def allows(self, twin: Function, original: Function, x: Tensor, mode: Hashable = None) -> bool:
        """Whether the twin gave the original's values and its gradient in ``x``.

        An original that draws random numbers cannot be compared, and its twin is trusted.

        Args:
            twin: must change nothing.
            original: must change nothing.
            x: (B, ...) the first real input.
            mode: in which both run, e.g. training; each is compared once.
        """
        if not self.compared(mode):
            self._compared.add(mode)
            try:
                with _random_state_kept(x.device), full_float32(x.device):
                    difference = _difference(twin, original, x, self.half)
            except Exception as error:  # noqa: BLE001 whatever a network does in another form
                difference = f"{type(error).__name__}: {one_line(error)}"
            if difference:
                self.drop(difference)
        return not self.dropped

    def compared(self, mode: Hashable = None) -> bool:
        """Whether there is nothing left to compare."""
        return self.dropped or mode in self._compared

    def drop(self, reason: str) -> None:
        """Use the twin no more, and log why."""
        self.dropped = True
        self.logger.warning("%s is not used: %s", self.what, reason)


def _difference(twin: Function, original: Function, x: Tensor, half: bool) -> str:
    """In what the twin differs; empty if in nothing."""
    before = _random_state(x.device)
    expected = values_and_gradient(original, x)
    if not torch.equal(before, _random_state(x.device)):
        return ""
    found = values_and_gradient(twin, x)
    if not agree(found[0], expected[0], half, differing=0.0):
        return "its values are others"
    return "" if agree(found[1], expected[1], half) else "its gradient is another"


def values_and_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ...) values of a function, and the gradient in ``x`` of a fixed combination of them.

    A function that does not depend on ``x`` has the gradient 0.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        values = function(x)
        weights = torch.arange(1, values.numel() + 1, device=values.device).cos()
        total = (values * weights.to(values.dtype).view_as(values)).sum()
        if not total.requires_grad:
            return values.detach(), torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True, materialize_grads=True)
    return values.detach(), gradient


def joined(prediction: Any, count: int) -> Tensor:
    """A prediction of several tensors as one: what it has for each of ``count`` images."""
    if isinstance(prediction, Tensor):
        return prediction
    leaves = [leaf for leaf in tree_leaves(prediction) if isinstance(leaf, Tensor)]
    rows = [leaf.reshape(count, -1) for leaf in leaves if leaf.shape[:1] == (count,)]
    return torch.cat(rows, 1) if rows else torch.zeros(count, 0)


def agree(found: Tensor, expected: Tensor, half: bool = False, differing: float = KINKED) -> bool:
    """Whether two results are the same up to rounding; NaN agrees with nothing.

    Args:
        found: (B, ...).
        expected: (B, ...).
        half: whether they were computed in half precision, whatever they are given in.
        differing: the share of samples that may differ.
    """
    if found.shape != expected.shape:
        return False
    bound = EXACT if expected.dtype == torch.float64 else ROUNDING
    if half or HALF & {found.dtype, expected.dtype}:
        bound = HALF_ROUNDING
    error = _errors(found, expected)
    return int((~(error <= bound)).sum()) <= differing * len(error)


def as_near(
    found: Tensor,
    other: Tensor,
    exact: Tensor,
    differing: float = KINKED,
    small: float = SMALL_IN_HALF,
) -> bool:
    """Whether a gradient in half precision, or in TF32, errs no more than another one does.

    At a network's kinks rounding turns gradients: a small ResNet's in bfloat16 is off by 3 to 30
    per cent, in whatever order its operations are done. So no fixed bound tells rounding from a
    mistake, but the error of a computation that is known to be right does.

    Args:
        found: (B, ...).
        other: (B, ...), known to be right up to its rounding.
        exact: (B, ...), in full precision.
        differing: the share of samples that may differ.
        small: an error that is allowed in any case.
    """
    if not found.shape == other.shape == exact.shape:
        return False
    error, usual = _errors(found, exact), _errors(other, exact)
    most = float(usual.quantile(1 - differing, interpolation="lower"))
    bound = max(small, LEEWAY * most)
    return int((~(error <= bound)).sum()) <= differing * len(error)


def _errors(found: Tensor, expected: Tensor) -> Tensor:
    """(B,) relative errors."""
    apart = (found.double() - expected.double()).flatten(1).norm(dim=1)
    size = expected.double().flatten(1).norm(dim=1)
    # What is next to nothing beside the rest of its batch may be rounding itself.
    error: Tensor = apart / size.clamp(min=max(1e-6 * float(size.max()), 1e-30))
    return error


def disturbed(tensors: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Weights moved by a third of their size, zeros by a tenth of 1.

    Untrained adapters change nothing, so that a twin which leaves them out would pass with them.
    """
    generator, moved = torch.Generator().manual_seed(seed), {}
    for name, value in tensors.items():
        noise = torch.randn(value.shape, generator=generator).to(value)
        size = float(value.detach().abs().double().square().mean().sqrt()) if value.numel() else 0.0
        moved[name] = value.detach() + noise * (0.3 * size or 0.1)
    return moved


def computes_in_half(network: nn.Module) -> bool:
    """Whether a network has weights, or a ``dtype``, of half precision."""
    types = {getattr(layer, "dtype", None) for layer in network.modules()}
    return bool(HALF & types.union(weight.dtype for weight in network.parameters()))


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
