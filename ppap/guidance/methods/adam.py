"""Adam on guidance gradients.

Belardi et al., *Adaptive Moments are Surprisingly Effective for Plug-and-Play Diffusion Sampling*
(ICLR 2026, arXiv 2603.16797), algorithms 1 and 2. Along the trajectory, n = 1, 2, ...:

    g = ∇_{x_t} log p(y | x_t)
    m ← β₁ m + (1 - β₁) g,    v ← β₂ v + (1 - β₂) g²
    d = m / (1 - β₁ⁿ) / (sqrt(v / (1 - β₂ⁿ)) + 10⁻⁸)

d takes the gradient's place: after the step, x_(t-1) ← step(x_t) + s d / sqrt(α_t) (Adam-DPS), or
where the sampler lets gradients in (Adam-CG).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ppap.diffusion.guide import State
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import noisy_gradient
from ppap.guidance.methods.base import LikelihoodMethod, check_numbers

__all__ = ["AdamGuidance"]


@dataclass(frozen=True, eq=False)
class AdamGuidance(LikelihoodMethod):
    """Adaptive moments of the guidance gradient.

    Attributes:
        likelihood: of the targets.
        scale: s, the length of a correction in every pixel.
        beta1, beta2: decay of the moments, in [0, 1).
        enters: ``"after"`` the step, as in Adam-DPS, or as a ``"gradient"``, as in Adam-CG.

    Raises:
        TypeError: for a decay that is no number.
        ValueError: for a decay outside [0, 1) or another way to enter.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    enters: Literal["after", "gradient"] = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "beta1", "beta2")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"decays lie in [0, 1), got {self.beta1} and {self.beta2}")
        if self.enters not in ("after", "gradient"):
            raise ValueError(f"it enters 'after' or as a 'gradient', got {self.enters!r}")

    def guided(self, step: SamplingStep) -> Update:
        """Lines 3 to 9."""
        gradient, _ = noisy_gradient(self.likelihood, step.state)
        push = self.scaled(self._direction(gradient, step.state), step.state)
        if self.enters == "gradient":
            return step.take(gradient=push)
        update = step.take()
        shift = push / math.sqrt(step.signal / step.signal_next)
        return replace(update, x=update.x + shift, gradient=push)

    def _direction(self, gradient: Tensor, state: State) -> Tensor:
        n, m, v = state.memory.get(self, (0, 0.0, 0.0))
        n, m = n + 1, self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + (1 - self.beta2) * gradient.square()
        state.memory[self] = n, m, v
        found: Tensor = m / (1 - self.beta1**n) / ((v / (1 - self.beta2**n)).sqrt() + 1e-8)
        return found
