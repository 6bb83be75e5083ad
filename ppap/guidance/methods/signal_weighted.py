"""ADM-G that is held back in the noise: this library's own.

    g ← abar_t^p ∇_{x_t} log p(y | x_t),    then as in ADM-G (:mod:`ppap.guidance.methods.adm_g`)

With p = 1/2 the weight is the image's share sqrt(abar_t) in x_t. Where sampling begins it is next
to nothing, as with a guidance interval (Kynkäänniemi et al., arXiv 2404.07724), but it rises
gradually.
"""

from __future__ import annotations

from ppap.guidance.likelihoods import Likelihood
from ppap.guidance.methods.adm_g import classifier_guidance
from ppap.guidance.scale import Scale
from ppap.guidance.wrappers import SignalWeighted

__all__ = ["signal_weighted_guidance"]


def signal_weighted_guidance(
    likelihood: Likelihood, scale: Scale = 1.0, power: float = 0.5
) -> SignalWeighted:
    """The guide by a noise-aware likelihood, or by a sum of such.

    Args:
        likelihood: of the targets.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.
        power: p, of abar.

    Raises:
        TypeError: for a likelihood that looks at x̂₀.
        ValueError: as :class:`ppap.guidance.guides.LikelihoodGuide`, and for a power that is
            negative or not finite.
    """
    return SignalWeighted(classifier_guidance(likelihood, scale), power)
