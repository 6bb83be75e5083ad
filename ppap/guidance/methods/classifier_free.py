"""Classifier-free guidance.

Ho & Salimans (arXiv 2207.12598), equation 6:

    ε̂ ← ε̂(x_t) + s (ε̂(x_t | y) - ε̂(x_t))

The denoiser that is sampled is the unconditional one, so that s = 0 leaves it unguided, s = 1 gives
the conditional one, and s - 1 is the paper's w.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.methods.by_denoiser import DenoiserMethod
from ppap.guidance.scale import scaled

__all__ = ["ClassifierFreeGuidance"]


@dataclass(frozen=True, eq=False)
class ClassifierFreeGuidance(DenoiserMethod):
    """From the unconditional denoiser towards, and beyond, the conditional one.

    Attributes:
        other: the conditional denoiser, under its conditions
            (:meth:`ppap.diffusion.denoiser.Denoiser.with_conditions`).
        scale: s.
    """

    def guided(self, step: SamplingStep) -> Update:
        """Equation 6, and a step with it."""
        state = step.state
        free = state.prediction().epsilon
        conditional = self.other(state.x_t, state.timesteps).epsilon
        return step.take(epsilon=free + scaled(self.scale, conditional - free, state))
