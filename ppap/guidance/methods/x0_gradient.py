"""The gradient of a clean predictor's log-likelihood through the denoiser, and nothing else.

The forward guidance of Bansal et al. (arXiv 2302.07121), and diffusion posterior sampling (Chung et
al., arXiv 2209.14687) without its normalisation:

    g = ∇_{x_t} log p(y | x̂₀(x_t)),  which enters where the sampler lets gradients in.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ppap.diffusion.guide import State
from ppap.guidance.likelihoods import noisy_gradient
from ppap.guidance.methods.base import Targeted
from ppap.guidance.scale import is_zero, scale_at

__all__ = ["X0Gradient"]


@dataclass(frozen=True, eq=False)
class X0Gradient(Targeted):
    """scale * gradient in x_t of log p(target | x̂₀(x_t)).

    A guide that gives a gradient, so that it may be summed with others, reused and clipped. Of a
    likelihood that looks at x_t it is that likelihood's own gradient, as PPAP has it.

    Attributes:
        likelihood: of the targets.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.
    """

    def __call__(self, state: State) -> Tensor | None:
        if is_zero(scale_at(self.scale, state)):
            return None
        gradient, _ = noisy_gradient(self.likelihood, state)
        return self.scaled(gradient, state)
