"""Universal guidance: forward, backward, and recurrent.

Bansal et al., *Universal Guidance for Diffusion Models* (CVPR Workshops 2023, arXiv 2302.07121),
algorithm 1:

    repeat k times:
        g = s ∇_{x_t} log p(y | x̂₀(x_t))                          forward, equation 6
        Δ = m steps of ascent of log p(y | x̂₀ + Δ), each s ∇       backward, equation 7
        ε̂ ← ε̂ - sqrt(1 - abar_t) g - sqrt(abar_t / (1 - abar_t)) Δ
        x_(t-1) ← step with ε̂
        x_t ~ q(x_t | x_(t-1))          (self-recurrence, between repetitions)

Both shifts of ε̂ are those of one gradient in x_t, g + sqrt(abar_t) / (1 - abar_t) Δ, which enters
where the sampler lets gradients in: in DDIM as above, in DDPM through the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppap.diffusion.guide import State
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import clean_gradient, noisy_gradient
from ppap.guidance.methods.base import (
    LikelihoodMethod,
    check_counts,
    check_numbers,
    clipped,
    recurrent,
)

__all__ = ["UniversalGuidance"]


@dataclass(frozen=True, eq=False)
class UniversalGuidance(LikelihoodMethod):
    """Forward and backward universal guidance with self-recurrence.

    Attributes:
        likelihood: of the targets.
        scale: s, of forward and backward guidance alike.
        backward_steps: m; 0 for forward guidance alone.
        recurrence: k, how often each step is made.
        clip: the image that backward guidance starts from is held in [-clip, clip]; None
            leaves it as it is.

    Raises:
        TypeError: for a clip that is no number.
        ValueError: for negative backward steps, a recurrence below 1, or a clip that is not
            positive.
    """

    backward_steps: int = 0
    recurrence: int = 1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, backward_steps=0, recurrence=1)
        check_numbers(self)

    def guided(self, step: SamplingStep) -> Update:
        """Lines 3 to 12."""
        return recurrent(self._once, step, self.recurrence)

    def _once(self, step: SamplingStep, state: State) -> Update:
        forward, _ = noisy_gradient(self.likelihood, state)
        gradient = self.scaled(forward, state)
        if self.backward_steps:
            start = ahead = clipped(state.x_0(), self.clip)
            for _ in range(self.backward_steps):
                ahead = ahead + self.scaled(clean_gradient(self.likelihood, ahead, state), state)
            gradient = gradient + math.sqrt(step.signal) / (1 - step.signal) * (ahead - start)
        return step.take(state, gradient=gradient)
