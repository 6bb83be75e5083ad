"""A guide: one class is all that ``--plugin`` needs.

    python -m ablations run methods --plugin ablations.examples.signed --rows '*signed'

It moves the predicted image by the sign of the gradient, as adversarial attacks do, and holds the
predicted noise; its scale is in grey levels of 255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import clean_gradient
from ppap.guidance.methods.base import LikelihoodMethod


@dataclass(frozen=True, eq=False)
class Signed(LikelihoodMethod):
    """Made with a likelihood and a scale."""

    SEARCH: ClassVar[dict[str, tuple[Any, ...]]] = {"scale": (1.0, 64.0)}
    """Where a sweep that searches looks: from the least scale to the greatest."""

    def guided(self, step: SamplingStep) -> Update:
        """The step of a batch whose scale is not 0."""
        update = step.take()
        sign = clean_gradient(self.likelihood, update.x_0, step.state).sign()
        push = self.scaled(sign, step.state) / 127.5
        x = update.x + math.sqrt(step.signal_next) * push
        return replace(update, x=x, x_0=update.x_0 + push)
