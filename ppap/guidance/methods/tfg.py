"""TFG: the training-free methods under one roof.

Ye et al., *TFG: Unified Training-Free Guidance for Diffusion Models* (NeurIPS 2024, arXiv
2409.15761), algorithm 1. With p̃ the mean of p over x̂₀ + σ_t ε_i:

    repeat N_recur times, with x_t ~ q(x_t | x_(t-1)) in between:
        Δ_t = ρ_t ∇_{x_t} log p̃(y | x̂₀(x_t))
        Δ_0 = N_iter steps of ascent of log p̃(y | x̂₀ + Δ_0), each μ_t ∇
        x_(t-1) ← step(x_t) + Δ_t / sqrt(α_t) + sqrt(abar_(t-1)) Δ_0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ppap.diffusion.guide import State
from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import clean_gradient, noisy_gradient
from ppap.guidance.methods.base import (
    LikelihoodMethod,
    check_counts,
    check_numbers,
    clipped,
    recurrent,
)
from ppap.guidance.methods.strengths import NoiseSpread, Spread, check_spreads, spread

__all__ = ["TFG"]


@dataclass(frozen=True, eq=False)
class TFG(LikelihoodMethod):
    """Training-free guidance; the defaults are the paper's for CIFAR-10.

    Attributes:
        likelihood, scale: as of every method; the scale multiplies ρ and μ.
        rho, mu: means of ρ_t and μ_t over the steps.
        sigma: σ_t, if constant, or σ_t / sqrt(1 - abar_t), if it is to decrease.
        iterations, recurrence, samples: N_iter, N_recur, how many ε_i.
        rho_spread, mu_spread, sigma_spread: how they change along sampling.
        clip: x̂₀ is held in [-clip, clip]; None leaves it as it is.

    Raises:
        TypeError: for a ρ, μ, σ or clip that is no number.
        ValueError: for counts that are too small, an unknown spread, numbers that are not finite or
            a clip that is not positive.
    """

    rho: float = 1.0
    mu: float = 0.25
    sigma: float = 0.001
    iterations: int = 4
    recurrence: int = 1
    samples: int = 1
    rho_spread: Spread = "increase"
    mu_spread: Spread = "increase"
    sigma_spread: NoiseSpread = "decrease"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, iterations=0, recurrence=1, samples=1)
        check_numbers(self, "rho", "mu", "sigma")
        check_spreads(self.rho_spread, self.mu_spread, noise=self.sigma_spread)

    def guided(self, step: SamplingStep) -> Update:
        return recurrent(self._once, step, self.recurrence)

    def _once(self, step: SamplingStep, state: State) -> Update:
        rho = self.rho * spread(self.rho_spread, step)
        mu = self.mu * spread(self.mu_spread, step)
        alpha, sigma = step.signal / step.signal_next, self.sigma
        sigma *= math.sqrt(1 - step.signal) if self.sigma_spread == "decrease" else 1
        jitters = [sigma * step.draw() for _ in range(self.samples)] if sigma else []
        push = 0 * state.x_t
        if rho:
            gradient, _ = noisy_gradient(self.likelihood, state, jitters, self.clip)
            push = rho / math.sqrt(alpha) * self.scaled(gradient, state)
        x_0 = ahead = clipped(state.x_0(), self.clip)
        for _ in range(self.iterations if mu else 0):
            ascent = clean_gradient(self.likelihood, ahead, state, jitters)
            ahead = ahead + mu * self.scaled(ascent, state)
        push = push + math.sqrt(step.signal_next) * (ahead - x_0)
        epsilon = (state.x_t - math.sqrt(step.signal) * x_0) / math.sqrt(1 - step.signal)
        update = step.take(state, epsilon=epsilon)
        return replace(update, x=update.x + push, gradient=push)
