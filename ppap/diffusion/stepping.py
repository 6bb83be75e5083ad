"""A step of a trajectory, made by the sampler alone or by a method that wraps it.

Most guides give a gradient, and the sampler says where it enters
(:mod:`ppap.diffusion.gradient_entry`). Others need more: to add something after the step, to
change the prediction, to go back to the noise and step again, to keep several particles. Such a
:class:`StepGuide` is handed the sampler's step as an object and makes the step itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.diffusion.streams import NoiseStreams, derived_seed

__all__ = [
    "AnyGuide",
    "SamplingStep",
    "StepGuide",
    "StepGuideError",
    "Stepper",
    "check_gives_gradient",
    "check_guide",
    "gradient_of",
    "plain_step",
]

EXTRA_NOISE = 1
"""Sets the noise that methods draw for themselves apart from any other of the same seed."""


class SamplingStep:
    """The step from one noise level to the next, to be taken as often as a method wants.

    Args:
        sampler: whose step it is.
        schedule: the respaced schedule.
        index: position in it.
        state: of the batch, before the step.
        noise: (B, C, H, W) standard normal, of the unguided step, if the sampler is stochastic;
            drawn if it is not given.
        memory: of the sampler, from the step before.
        draw: gives further noise (B, C, H, W); by default each sample's own, which its seed and
            the number of the step alone decide.

    Attributes:
        sampler, schedule, index, state: as given.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        state: State,
        noise: Tensor | None = None,
        memory: Any = None,
        draw: Callable[[], Tensor] | None = None,
    ) -> None:
        self.sampler = sampler
        self.schedule = schedule
        self.index = index
        self.state = state
        self._noise = noise
        self._taken = False
        self._memory = memory
        self._draw = draw

    @property
    def signal(self) -> float:
        """abar before the step."""
        return float(self.schedule.alphas_cumprod[self.index])

    @property
    def signal_next(self) -> float:
        """abar after the step; 1 after the last one."""
        return float(self.schedule.alphas_cumprod_prev[self.index])

    def plain(self) -> Update:
        """The unguided step, bit for bit; it uses up no noise."""
        state = self.state
        return self.sampler.step(
            self.schedule,
            self.index,
            state.x_t,
            state.prediction(),
            None,
            self._own_noise(),
            self._memory,
        )

    def take(
        self,
        state: State | None = None,
        *,
        epsilon: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Update:
        """Take the step; the first time with the unguided step's noise, then with fresh noise.

        Args:
            state: where from, at this noise level; by default the batch's own.
            epsilon: (B, C, H, W), stands for the predicted noise.
            gradient: (B, C, H, W), scaled; enters where the sampler lets gradients in.
        """
        state = self.state if state is None else state
        prediction = state.prediction()
        if epsilon is not None:
            prediction = Prediction(epsilon, prediction.variance_fraction)
        return self.sampler.step(
            self.schedule, self.index, state.x_t, prediction, gradient, self._next_noise(),
            self._memory,
        )  # fmt: skip

    def renoise(self, x: Tensor) -> State:
        """Back from the next noise level to this one: x_t ~ q(x_t | x_(t-1)), DDPM equation 2.

        Args:
            x: (B, C, H, W) after the step.
        """
        kept = self.signal / self.signal_next
        return self.state.at(np.sqrt(kept) * x + np.sqrt(1 - kept) * self.draw())

    def draw(self) -> Tensor:
        """Fresh standard normal noise (B, C, H, W).

        Raises:
            ValueError: if the state has no seeds to draw it from.
        """
        if self._draw is None:
            seeds, x_t = self.state.seeds, self.state.x_t
            if len(seeds) != len(x_t):
                raise ValueError(
                    f"this method draws noise for {len(x_t)} samples, but the state has "
                    f"{len(seeds)} seeds; give it State(..., seeds=...)"
                )
            own = [derived_seed(int(seed), self.state.number, EXTRA_NOISE) for seed in seeds]
            self._draw = NoiseStreams(own, tuple(x_t.shape[1:]), x_t.device).draw
        return self._draw()

    def _own_noise(self) -> Tensor | None:
        """The unguided step's."""
        if self._noise is None and self.sampler.stochastic:
            self._noise = self._further_noise()
        return self._noise

    def _next_noise(self) -> Tensor | None:
        if not self.sampler.stochastic:
            return None
        if self._taken:
            return self._further_noise()
        self._taken = True
        return self._own_noise()

    def _further_noise(self) -> Tensor:
        if self.index == 0:  # the last step adds none
            return torch.zeros_like(self.state.x_t)
        return self.draw()


@runtime_checkable
class StepGuide(Protocol):
    """A guide that makes the whole step; as :class:`ppap.diffusion.guide.Guide` in all else."""

    def step(self, step: SamplingStep, /) -> Update:
        """From ``step.state`` to the next noise level."""
        ...

    @property
    def target_count(self) -> int | None:
        """How many samples its targets are for; None if any number."""
        ...

    def rows(self, chosen: slice, /) -> StepGuide:
        """The guide of some of the samples."""
        ...


AnyGuide = Guide | StepGuide
"""What may guide a trajectory."""


class StepGuideError(TypeError):
    """A guide that makes whole steps, where only a gradient can be used."""


def check_guide(guide: object) -> None:
    """Refuse what is no guide.

    Raises:
        TypeError: saying what came, and what to do.
    """
    targets = hasattr(guide, "target_count") and hasattr(guide, "rows")
    acts = callable(guide) or isinstance(guide, StepGuide)
    if targets and acts and not isinstance(guide, type):
        return
    kind = type(guide).__name__
    if hasattr(guide, "of_state") and not isinstance(guide, type):
        raise TypeError(
            f"{kind} is a likelihood, by which a method guides; take one of "
            "ppap.guidance.METHODS, such as ppap.X0Gradient(likelihood, scale)"
        )
    mend = "take its guide(target, scale)" if hasattr(guide, "guide") else "see ppap.guidance"
    raise TypeError(f"a guide has targets of its own, got {kind}; {mend}")


def gradient_of(guide: Guide, state: State) -> Tensor | None:
    """What a guide gives in a state: a gradient (B, C, H, W) in the type of x_t, or None.

    Raises:
        TypeError: for a guide that gives something else.
        ValueError: for a gradient of another shape, which would be broadcast.
    """
    gradient: Any = guide(state)
    if gradient is None:
        return None
    kind, x_t = type(guide).__name__, state.x_t
    if not isinstance(gradient, Tensor):
        raise TypeError(
            f"a guide gives a gradient (B, C, H, W) or None, {kind} gave {type(gradient).__name__}"
        )
    if gradient.shape != x_t.shape:
        raise ValueError(
            f"a guide gives a gradient in x_t, {tuple(x_t.shape)}, {kind} gave "
            f"{tuple(gradient.shape)}"
        )
    return gradient.to(x_t.dtype)


def check_gives_gradient(guide: AnyGuide, place: str, instead: str) -> None:
    """Refuse a guide that makes whole steps.

    Args:
        guide: what was given.
        place: what it was given to.
        instead: what to do.

    Raises:
        StepGuideError: if it is a :class:`StepGuide`.
        TypeError: if it is no guide at all.
    """
    check_guide(guide)
    if isinstance(guide, StepGuide):
        raise StepGuideError(
            f"{place} works on gradients, and {type(guide).__name__} makes whole steps; {instead}"
        )


class Stepper(Protocol):
    """One way to compute a guided step: plainly, or as :mod:`ppap.fast` does."""

    def __call__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        state: State,
        guide: AnyGuide | None,
        noise: Tensor | None,
        memory: Any,
        /,
    ) -> Update:
        """As :meth:`Sampler.step`, of the state's batch; the guide's targets are the batch's."""
        ...


def plain_step(
    sampler: Sampler,
    schedule: Schedule,
    index: int,
    state: State,
    guide: AnyGuide | None,
    noise: Tensor | None,
    memory: Any,
    /,
) -> Update:
    """The step as it is defined; every other way must agree with it up to rounding."""
    if isinstance(guide, StepGuide):
        return guide.step(SamplingStep(sampler, schedule, index, state, noise, memory))
    # The guide comes first: if it differentiates the denoiser, its forward pass serves the step.
    gradient = None if guide is None else gradient_of(guide, state)
    return sampler.step(schedule, index, state.x_t, state.prediction(), gradient, noise, memory)
