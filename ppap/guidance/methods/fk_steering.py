"""FK steering: for rewards without a gradient.

Singhal et al., *A General Framework for Inference-time Scaling and Steering of Diffusion Models*
(ICML 2025, arXiv 2501.06848), algorithm 1. Every sample is a population of k particles. After every
m-th step, with the reward r = log p(y | x̂₀), they are drawn in proportion to their potentials

    difference: exp(λ (r - r_before))    or    max: exp(λ max(r, all before)),

and the best of the last ones is the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.methods.base import LikelihoodMethod, check_counts
from ppap.guidance.methods.particles import chosen, started, systematic
from ppap.guidance.scale import scale_at

__all__ = ["FKSteering"]


@dataclass(frozen=True, eq=False)
class FKSteering(LikelihoodMethod):
    """Particles drawn by their rewards; needs a stochastic sampler, such as ``DDIM(eta=1)``.

    Attributes:
        likelihood: the reward; no gradient of it is taken.
        scale: λ.
        particles, every: k and m.
        potential: see above.
        clip: x̂₀ is held in [-clip, clip] for the reward; None leaves it as it is.

    Raises:
        ValueError: for numbers below 1 or an unknown potential; at a step, for a sampler that
            is not stochastic, or that remembers earlier steps.
    """

    particles: int = 4
    every: int = 5
    potential: Literal["difference", "max"] = "difference"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, particles=1, every=1)
        if self.potential not in ("difference", "max"):
            raise ValueError(f"the potential is 'difference' or 'max', got {self.potential!r}")

    def guided(self, step: SamplingStep) -> Update:
        """Lines 2 to 8. Before the end the first particle stands for the sample."""
        x_t, before = step.state.memory.get(self, (None, torch.tensor(0.0)))
        states = [step.state.at(x) for x in (started(step, self.particles) if x_t is None else x_t)]
        updates = [step.take(state) for state in states]
        if not step.sampler.stochastic or updates[0].memory is not None:
            raise ValueError(f"FK steering needs DDIM(eta > 0) or DDPM, not {step.sampler!r}")
        x = torch.stack([update.x for update in updates])  # (k, B, C, H, W)
        if step.index == 0:
            pairs = zip(x, states, strict=True)
            reward = torch.stack([self.likelihood.of_image(*pair) for pair in pairs])
            return replace(updates[0], x=chosen(x, reward.argmax(0, keepdim=True))[0])
        if (step.state.number + 1) % self.every == 0:
            reward = torch.stack([self.likelihood.of_state(s, clip=self.clip) for s in states])
            drawn = systematic(self._log_potential(reward, before, step), step.draw())
            x, before = chosen(x, drawn), reward.gather(0, drawn)
        step.state.memory[self] = x, before
        return replace(updates[0], x=x[0])

    def _log_potential(self, reward: Tensor, before: Tensor, step: SamplingStep) -> Tensor:
        gain = reward - before if self.potential == "difference" else torch.maximum(reward, before)
        return torch.as_tensor(scale_at(self.scale, step.state)).to(gain) * gain
