"""Autoguidance: away from a bad version of the denoiser.

Karras et al., *Guiding a Diffusion Model with a Bad Version of Itself* (NeurIPS 2024, arXiv
2406.02507), equation 3, in terms of the predicted noise:

    ε̂ ← ε̂(x_t) + s (ε̂(x_t) - ε̂_bad(x_t))

The denoiser that is sampled is the good one; s + 1 is the paper's w. It needs no target.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.methods.by_denoiser import DenoiserMethod
from ppap.guidance.scale import scaled

__all__ = ["Autoguidance"]


@dataclass(frozen=True, eq=False)
class Autoguidance(DenoiserMethod):
    """Away from a smaller or less trained denoiser.

    Attributes:
        other: the bad denoiser, under the same conditions as the good one if there are any.
        scale: s.
    """

    def guided(self, step: SamplingStep) -> Update:
        """Equation 3, and a step with it."""
        state = step.state
        good = state.prediction().epsilon
        bad = self.other(state.x_t, state.timesteps).epsilon
        return step.take(epsilon=good + scaled(self.scale, good - bad, state))
