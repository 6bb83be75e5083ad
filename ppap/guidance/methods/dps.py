"""DPS: diffusion posterior sampling.

Chung et al., *Diffusion Posterior Sampling for General Noisy Inverse Problems* (ICLR 2023, arXiv
2209.14687), algorithm 1, for any log-likelihood in place of a squared residual:

    x_(t-1) ← step(x_t) + ζ / |log p(y | x̂₀)| · ∇_{x_t} log p(y | x̂₀(x_t))

The paper divides by the residual's norm; TFG's implementation, whose figures this one agrees
with, by the log-likelihood's magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import noisy_gradient
from ppap.guidance.methods.base import LikelihoodMethod

__all__ = ["DPS"]

# A certain prediction's log p rounds to 0: below its resolution there is nothing to divide by.
RESOLUTION = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class DPS(LikelihoodMethod):
    """Diffusion posterior sampling.

    Attributes:
        likelihood: of the targets.
        scale: ζ, the length of a correction; as of every method a number, one per sample or a
            function of abar.
    """

    def guided(self, step: SamplingStep) -> Update:
        """Lines 4 to 7."""
        gradient, log_p = noisy_gradient(self.likelihood, step.state)
        size = log_p.abs().clamp_min(RESOLUTION)[:, None, None, None]
        push = self.scaled(gradient / size, step.state)
        update = step.take()
        return replace(update, x=update.x + push, gradient=push)
