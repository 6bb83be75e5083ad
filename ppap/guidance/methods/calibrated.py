"""ADM-G under calibrated logits: joint and marginal weighed apart.

    g ← ∇_{x_t} [f_y(x_t, t) - log Σ exp(τ f(x_t, t))],    then as in ADM-G
                                                           (:mod:`ppap.guidance.methods.adm_g`)

τ = 1 is ADM-G, whose gradient vanishes once the classifier is sure of the class. Below 1 it does
not, and goes on raising the logit of the class. Ma et al. (ICLR 2024, arXiv 2310.11311) weigh
the two terms so for a clean classifier that is shown x̂₀ (:mod:`ppap.guidance.methods.elucd`);
here it is a noise-aware one, such as a bank of experts, at x_t. It costs nothing.
"""

from __future__ import annotations

import copy
from functools import partial

from ppap.diffusion.guide import Guide
from ppap.guidance.guides import LikelihoodGuide
from ppap.guidance.likelihoods import Likelihood
from ppap.guidance.methods.adm_g import classifier_guidance
from ppap.guidance.methods.elucd import CalibratedLogits
from ppap.guidance.scale import Scale
from ppap.guidance.wrappers import with_inner
from ppap.tasks.classes import ClassTask

__all__ = ["calibrated", "calibrated_guidance"]


def calibrated_guidance(likelihood: Likelihood, scale: Scale = 1.0, marginal: float = 0.5) -> Guide:
    """The guide by a noise-aware likelihood, or by a sum of such.

    Args:
        likelihood: of the targets; its parts that are no classes stay as they are.
        scale: guidance scale: a number, (N,) numbers, one per image, or a function of abar.
        marginal: τ.

    Raises:
        TypeError: for a likelihood that looks at x̂₀.
        ValueError: as :class:`ppap.guidance.guides.LikelihoodGuide`, and for a τ that is negative
            or not finite.
    """
    return calibrated(classifier_guidance(likelihood, scale), marginal)


def calibrated(guide: Guide, marginal: float = 0.5) -> Guide:
    """The same guide under calibrated logits, in all that it does towards classes.

    Args:
        guide: a :class:`LikelihoodGuide`, a sum of such, or what is around one; it stays as it is.
            What follows :class:`ppap.guidance.methods.elucd.CalibratedLogits` already keeps its
            own.
        marginal: τ; see :class:`ppap.guidance.methods.elucd.CalibratedLogits`.

    Raises:
        TypeError: for another guide, whose logits are not to be seen, or a task derived from
            :class:`ppap.tasks.classes.ClassTask`, of which nobody knows what it makes of them.
        ValueError: for a τ that is negative or not finite.
    """
    return with_inner(guide, partial(_calibrated, task=CalibratedLogits(1.0, marginal)))


def _calibrated(guide: Guide, task: CalibratedLogits) -> LikelihoodGuide:
    """A guide that is around no other."""
    if not isinstance(guide, LikelihoodGuide):
        raise TypeError(
            "calibrated logits are for a guide by a noise-aware classifier, such as "
            f"bank.guide(...), got {type(guide).__name__}; give its likelihood the task "
            "CalibratedLogits() instead"
        )
    other = copy.copy(guide)
    if type(guide.task) is ClassTask:
        other.task = task
    elif isinstance(guide.task, ClassTask):
        raise TypeError(
            f"{type(guide.task).__name__} has a likelihood of its own; give the guide a task "
            "whose likelihood is calibrated"
        )
    return other
