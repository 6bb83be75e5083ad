"""LGD-MC: the likelihood averaged over a Gaussian around the predicted image.

Song et al., *Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation* (ICML 2023,
proceedings.mlr.press/v202/song23k.html), equation 8:

    g = ∇_{x_t} log 1/n Σ_i p(y | x̂₀ + r_t ε_i),  ε_i ~ N(0, I),  r_t = sqrt(1 - abar_t)
    x_(t-1) ← step(x_t) + ζ g

A point estimate of x_0 is overconfident at high noise; a Gaussian around it is less so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import noisy_gradient
from ppap.guidance.methods.base import LikelihoodMethod, check_counts

__all__ = ["LGD"]


@dataclass(frozen=True, eq=False)
class LGD(LikelihoodMethod):
    """Loss-guided diffusion with Monte Carlo.

    Attributes:
        likelihood: of the targets.
        scale: ζ. TFG's implementation divides by n once more.
        samples: n, how many draws around x̂₀.

    Raises:
        ValueError: for fewer than one draw.
    """

    samples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, samples=1)

    def guided(self, step: SamplingStep) -> Update:
        """Equation 8, and a step with it."""
        radius = math.sqrt(1 - step.signal)
        jitters = [radius * step.draw() for _ in range(self.samples)]
        gradient, _ = noisy_gradient(self.likelihood, step.state, jitters)
        push = self.scaled(gradient, step.state)
        update = step.take()
        return replace(update, x=update.x + push, gradient=push)
