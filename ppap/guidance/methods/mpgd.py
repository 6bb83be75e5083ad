"""MPGD: guide the predicted image and keep the predicted noise.

He et al., *Manifold Preserving Guided Diffusion* (ICLR 2024, arXiv 2311.16424), algorithm 1,
without an autoencoder:

    x̂₀ ← x̂₀ + c ∇_{x̂₀} log p(y | x̂₀)
    x_(t-1) ← step towards the new x̂₀ along the old ε̂

No gradient goes through the denoiser, so a step costs little more than an unguided one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import clean_gradient
from ppap.guidance.methods.base import LikelihoodMethod, check_numbers, clipped

__all__ = ["MPGD"]


@dataclass(frozen=True, eq=False)
class MPGD(LikelihoodMethod):
    """Manifold-preserving guided diffusion.

    Attributes:
        likelihood: of the targets.
        scale: c.
        clip: x̂₀ is held in [-clip, clip] before it is guided, whatever the sampler does; None
            leaves it as the sampler has it.

    Raises:
        TypeError: for a clip that is no number.
        ValueError: for one that is not positive.
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self)

    def guided(self, step: SamplingStep) -> Update:
        """Lines 3 to 7."""
        update = step.take()
        x_0 = clipped(update.x_0, self.clip)
        gradient = self.scaled(clean_gradient(self.likelihood, x_0, step.state), step.state)
        # With the noise held, an image's part of x_(t-1) is sqrt(abar_(t-1)) of it.
        push = math.sqrt(step.signal_next) * (x_0 + gradient - update.x_0)
        return replace(update, x=update.x + push, x_0=x_0 + gradient, gradient=gradient)
