"""FreeDoM: an energy, and time travel.

Yu et al., *FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model* (ICCV 2023, arXiv
2303.09833), algorithm 2, with the negative log-likelihood as the energy:

    repeat r times:
        x_(t-1) ← step(x_t) + ρ_t ∇_{x_t} log p(y | x̂₀(x_t))
        x_t ~ q(x_t | x_(t-1))          (time travel, between repetitions)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ppap.diffusion.guide import State
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import noisy_gradient
from ppap.guidance.methods.base import LikelihoodMethod, check_counts, recurrent
from ppap.guidance.methods.strengths import Spread, check_spreads, spread

__all__ = ["FreeDoM"]


@dataclass(frozen=True, eq=False)
class FreeDoM(LikelihoodMethod):
    """Energy guidance with time travel.

    Attributes:
        likelihood: of the targets.
        scale: the mean of ρ_t.
        recurrence: r, how often each step is made; 1 for no time travel.
        rho_spread: how ρ_t changes along sampling.

    Raises:
        ValueError: for a recurrence below 1 or an unknown spread.
    """

    recurrence: int = 1
    rho_spread: Spread = "increase"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, recurrence=1)
        check_spreads(self.rho_spread)

    def guided(self, step: SamplingStep) -> Update:
        """Lines 3 to 12."""
        return recurrent(self._once, step, self.recurrence)

    def _once(self, step: SamplingStep, state: State) -> Update:
        gradient, _ = noisy_gradient(self.likelihood, state)
        rho = spread(self.rho_spread, step)
        push = rho * self.scaled(gradient, state)
        update = step.take(state)
        return replace(update, x=update.x + push, gradient=push)
