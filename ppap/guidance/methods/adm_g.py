"""ADM-G: a classifier that was trained on noisy images.

Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis* (NeurIPS 2021, arXiv 2105.05233),
algorithms 1 and 2:

    DDPM: μ ← μ + s Σ g,    DDIM: ε̂ ← ε̂ - s sqrt(1 - abar_t) g,    g = ∇_{x_t} log p(y | x_t)

PPAP is the same with a bank of experts as the classifier. Both shifts are in
:mod:`ppap.diffusion.gradient_entry`, and g is :class:`ppap.guidance.guides.LikelihoodGuide`'s.
"""

from __future__ import annotations

from ppap.guidance.guides import LikelihoodGuide, SumOfGuides
from ppap.guidance.likelihoods import Likelihood, NoisyLikelihood, SumOfLikelihoods
from ppap.guidance.scale import Scale, weighted

__all__ = ["classifier_guidance"]


def classifier_guidance(
    likelihood: Likelihood, scale: Scale = 1.0
) -> LikelihoodGuide | SumOfGuides:
    """The guide by a noise-aware likelihood, or by a sum of such.

    Args:
        likelihood: of the targets.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.

    Raises:
        TypeError: for a likelihood that looks at x̂₀.
        ValueError: as :class:`ppap.guidance.guides.LikelihoodGuide`.
    """
    if isinstance(likelihood, SumOfLikelihoods):
        return SumOfGuides(tuple(classifier_guidance(part, scale) for part in likelihood.parts))
    if not isinstance(likelihood, NoisyLikelihood):
        raise TypeError(
            f"ADM-G looks at x_t and takes a NoisyLikelihood, got {type(likelihood).__name__}; "
            "a clean predictor guides through X0Gradient"
        )
    return LikelihoodGuide(
        likelihood.model, likelihood.task, likelihood.targets, weighted(scale, likelihood.weight)
    )
