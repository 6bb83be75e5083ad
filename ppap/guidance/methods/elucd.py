"""EluCD: an off-the-shelf classifier, calibrated.

Ma et al., *Elucidating the Design Space of Classifier-Guided Diffusion Generation* (ICLR 2024,
arXiv 2310.11311):

* its logits f give τ₁ f_y - log Σ exp(τ₂ f): joint against conditional (:class:`CalibratedLogits`);
* its ReLUs become softplus (:func:`ppap.predictors.softplus.with_softplus`);
* it is shown x̂₀, and the gradient g there counts as that in x_t: nothing goes through the denoiser;
* ancestral sampling adds (Σ_t + γ sin(π t / T) Σ_max) g to the mean.

Samplers without a Σ_t let g in where they let gradients in, and the sine's part is added to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ppap.compute.options import check_number
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import clean_gradient
from ppap.guidance.methods.base import LikelihoodMethod, check_numbers
from ppap.tasks.checks import checked_labels, checked_scores

__all__ = ["CalibratedLogits", "EluCD"]


@dataclass(frozen=True)
class CalibratedLogits:
    """A classifier's task under two temperatures; for guiding only.

    Attributes:
        joint: τ₁, multiplies the target's logit.
        marginal: τ₂, multiplies the logits that are summed over; 0 guides by the joint alone.

    Raises:
        TypeError: for a temperature that is no number; in use, for a prediction that is no tensor.
        ValueError: for a temperature that is negative or not finite; in use, for a prediction or
            targets of another shape or dtype, or a class that does not exist.
    """

    joint: float = 1.0
    marginal: float = 0.5

    def __post_init__(self) -> None:
        for name in ("joint", "marginal"):
            check_number(f"the {name} temperature", getattr(self, name), 0)

    def log_likelihood(self, prediction: Any, targets: Tensor) -> Tensor:
        """(B,) of (B, K) logits and (B,) class indices."""
        logits = checked_scores(prediction, 2, "class")
        labels = checked_labels(targets, logits.shape[:1], logits.shape[1])
        of_targets = logits.gather(1, labels[:, None])[:, 0]
        return self.joint * of_targets - (self.marginal * logits).logsumexp(1)


@dataclass(frozen=True, eq=False)
class EluCD(LikelihoodMethod):
    """Guidance by a calibrated classifier on x̂₀.

    Attributes:
        likelihood: of the targets, e.g. under :class:`CalibratedLogits`.
        scale: of the gradient, as of every method.
        gamma: γ, of the sine; Σ_max is the largest beta of the steps that are made.

    Raises:
        TypeError: for a γ that is no number.
        ValueError: for one that is not finite.
    """

    gamma: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "gamma")

    def guided(self, step: SamplingStep) -> Update:
        """One step of algorithm 1."""
        x_0 = step.plain().x_0
        gradient = self.scaled(clean_gradient(self.likelihood, x_0, step.state), step.state)
        wave = math.sin(math.pi * step.index / len(step.schedule))
        extra = self.gamma * wave * float(step.schedule.betas.max())
        update = step.take(gradient=gradient)
        return replace(update, x=update.x + extra * gradient)
