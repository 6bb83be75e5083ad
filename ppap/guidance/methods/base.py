"""What methods that make whole steps have in common: a scale, and what happens where it is 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ppap.compute.options import check_number
from ppap.diffusion.guide import State
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.guides import move
from ppap.guidance.likelihoods import Likelihood
from ppap.guidance.scale import (
    Scale,
    checked_scale,
    is_zero,
    scale_at,
    scale_count,
    scale_rows,
    scaled,
)

__all__ = [
    "LikelihoodMethod",
    "Method",
    "Targeted",
    "check_counts",
    "check_numbers",
    "clipped",
    "recurrent",
]


class Method(ABC):
    """A guide that makes whole steps, and leaves samples of scale 0 unguided, bit for bit.

    Attributes:
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.
    """

    scale: Scale

    @abstractmethod
    def guided(self, step: SamplingStep) -> Update:
        """The method itself: the step of a batch whose scales are not 0."""

    def step(self, step: SamplingStep) -> Update:
        """The unguided step where the scale is 0, the method's elsewhere."""
        scale = scale_at(self.scale, step.state)
        if is_zero(scale):
            return step.plain()
        if isinstance(scale, Tensor) and not bool(scale.all()):
            plain = step.plain()
            return _either(scale.to(plain.x.device) != 0, self.guided(step), plain)
        return self.guided(step)


@dataclass(frozen=True, eq=False)
class Targeted:
    """A guide that follows a likelihood.

    Attributes:
        likelihood: of the targets.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.

    Raises:
        TypeError: for what is no likelihood, such as a guide.
        ValueError: for a scale that is not finite, or another number of scales than of
            targets.
    """

    likelihood: Likelihood
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        if not hasattr(self.likelihood, "of_state"):
            raise TypeError(
                f"{type(self).__name__} guides by a likelihood, such as ppap.ImageLikelihood("
                "predictor, task, targets) or bank.likelihood(targets), got "
                f"{type(self.likelihood).__name__}"
            )
        checked = checked_scale(self.scale, self.likelihood.target_count)
        object.__setattr__(self, "scale", checked)

    @property
    def target_count(self) -> int | None:
        """How many samples its targets are for; None if any number."""
        count = self.likelihood.target_count
        return scale_count(self.scale) if count is None else count

    def to(self, device: torch.device | str) -> None:
        """Move the models of the likelihood."""
        move(self.likelihood, device)

    def rows(self, chosen: slice) -> Self:
        """The guide of some of the samples."""
        likelihood = self.likelihood.rows(chosen)
        return replace(self, likelihood=likelihood, scale=scale_rows(self.scale, chosen))

    def scaled(self, gradient: Tensor, state: State) -> Tensor:
        """The scale times a gradient (B, C, H, W)."""
        return scaled(self.scale, gradient, state)


@dataclass(frozen=True, eq=False)
class LikelihoodMethod(Targeted, Method):
    """A method that follows a likelihood, and makes whole steps; see :class:`Targeted`."""


def clipped(x_0: Tensor, clip: float | None) -> Tensor:
    """Images (B, C, H, W) held in [-clip, clip]; None leaves them as they are."""
    return x_0 if clip is None else x_0.clamp(-clip, clip)


def recurrent(
    once: Callable[[SamplingStep, State], Update], step: SamplingStep, times: int
) -> Update:
    """A step made several times, back at its noise between repetitions."""
    update = once(step, step.state)
    for _ in range(times - 1):
        update = once(step, step.renoise(update.x))
    return update


def check_counts(method: object, **least: int) -> None:
    """Refuse numbers of a method that are below the least possible.

    Args:
        method: whose attributes they are.
        least: by attribute.

    Raises:
        ValueError: for the first that is no whole number or too small.
    """
    for name, lowest in least.items():
        found = getattr(method, name)
        if isinstance(found, bool) or not isinstance(found, int | np.integer) or found < lowest:
            raise ValueError(
                f"{type(method).__name__}: {name} is a whole number from {lowest} on, got {found!r}"
            )


def check_numbers(method: object, *names: str) -> None:
    """Refuse attributes of a method that are no finite numbers, and a ``clip`` that holds nothing.

    Args:
        method: whose attributes they are; its ``clip``, if it has one, may be None.
        names: of the numbers.

    Raises:
        TypeError: for what is no number.
        ValueError: for NaN, infinity, and a clip that is not positive.
    """
    kind = type(method).__name__
    for name in names:
        check_number(f"{kind}: {name}", getattr(method, name))
    clip = getattr(method, "clip", None)
    if clip is not None:
        check_number(f"{kind}: clip", clip, 0, above=True)


def _either(guided: Tensor, one: Update, other: Update) -> Update:
    """Rows of one update where (B,) ``guided``, of the other elsewhere."""
    here = guided[:, None, None, None]

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(here, a, b)

    gradient = None if one.gradient is None else choose(one.gradient, torch.zeros_like(one.x))
    memory: Any = one.memory
    if isinstance(memory, Tensor):
        memory = choose(memory, other.memory)
    elif memory is not None:
        raise ValueError(
            "scales that are 0 for some samples only need a sampler of this library; "
            "sample the others apart"
        )
    return Update(choose(one.x, other.x), choose(one.x_0, other.x_0), gradient, memory)
