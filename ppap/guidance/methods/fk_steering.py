"""FK steering: for rewards without a gradient.

Singhal et al., *A General Framework for Inference-time Scaling and Steering of Diffusion Models*
(ICML 2025, arXiv 2501.06848), algorithm 1. Every sample is a population of k particles. After every
m-th step, with the reward r = log p(y | x̂₀), they are drawn in proportion to their potentials

    difference: exp(λ (r - r_before))    or    max: exp(λ max(r, all before)),

and the best of the last ones is the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ppap.diffusion.solver import Update
from ppap.diffusion.stepping import SamplingStep
from ppap.files.images import NonFiniteError
from ppap.guidance.methods.base import LikelihoodMethod, check_counts, check_numbers, clipped
from ppap.guidance.methods.particles import chosen, started, systematic
from ppap.guidance.scale import is_zero, scale_at

__all__ = ["FKSteering"]


@dataclass(frozen=True, eq=False)
class _Particles:
    """Populations after a step.

    Attributes:
        number: of the step.
        x_t: (k, B, C, H, W).
        reward: (k, B) what the potential holds the next reward against: the one with which each
            was last drawn, or the largest up to then; before that () for all.
        steered: (B,), or () for all, whether the scale was ever another than 0.
    """

    number: int
    x_t: Sequence[Tensor] | Tensor
    reward: Tensor
    steered: Tensor


@dataclass(frozen=True, eq=False)
class FKSteering(LikelihoodMethod):
    """Particles drawn by their rewards; needs a stochastic sampler, such as ``DDIM(eta=1)``.

    Attributes:
        likelihood: the reward; no gradient of it is taken. Particles of reward -inf are never
            drawn, unless all of a sample's are: then they go on as they are.
        scale: λ. Particles are drawn where it is not 0, and go on undrawn where a function of the
            noise level is 0 after that; the best is chosen at the end in either case.
        particles, every: k and m.
        potential: see above.
        clip: x̂₀, and the last image, is held in [-clip, clip] for the reward; None leaves it as it
            is.

    Raises:
        NonFiniteError: at a step, for a reward that is not a number.
        TypeError: for a clip that is no number.
        ValueError: for numbers below 1, an unknown potential or a clip that is not positive; at a
            step, for a sampler that is not stochastic, or that remembers earlier steps.
    """

    particles: int = 4
    every: int = 5
    potential: Literal["difference", "max"] = "difference"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, particles=1, every=1)
        check_numbers(self)
        if self.potential not in ("difference", "max"):
            raise ValueError(f"the potential is 'difference' or 'max', got {self.potential!r}")

    def step(self, step: SamplingStep) -> Update:
        """Unguided up to the first scale that is not 0; from there on particles go on at any."""
        if self._kept(step) is None and is_zero(scale_at(self.scale, step.state)):
            return step.plain()
        return self.guided(step)

    def guided(self, step: SamplingStep) -> Update:
        """Lines 2 to 8. Before the end the first particle stands for the sample."""
        scale = torch.as_tensor(scale_at(self.scale, step.state), device=step.state.x_t.device)
        kept = self._kept(step)
        if kept is None:
            none = torch.zeros((), device=scale.device)
            least = none - math.inf if self.potential == "max" else none
            kept = _Particles(-1, started(step, self.particles), least, none.bool())
        states = [step.state.at(x) for x in kept.x_t]
        updates = [step.take(state) for state in states]
        if not step.sampler.stochastic or updates[0].memory is not None:
            raise ValueError(f"FK steering needs DDIM(eta > 0) or DDPM, not {step.sampler!r}")
        x = torch.stack([update.x for update in updates])  # (k, B, C, H, W)
        before, steered = kept.reward, kept.steered | (scale != 0)
        if step.index == 0:
            pairs = zip(clipped(x, self.clip), states, strict=True)
            reward = torch.stack([self.likelihood.of_image(*pair) for pair in pairs])
            _check(reward.isnan() & steered, step)
            best = reward.argmax(0, keepdim=True) * steered
            return replace(updates[0], x=chosen(x, best)[0])
        if (step.state.number + 1) % self.every == 0 and not is_zero(scale):
            reward = torch.stack([self.likelihood.of_state(s, clip=self.clip) for s in states])
            gain, held = self._compared(reward, before)
            weights = scale.to(gain) * gain
            _check(~(weights < math.inf) & (scale != 0), step)
            draws = (scale != 0) & (weights > -math.inf).any(0)
            drawn = systematic(weights, step.draw())
            undrawn = torch.arange(len(x), device=drawn.device)[:, None]
            drawn = torch.where(draws, drawn, undrawn)
            before = torch.where(draws, held.gather(0, drawn), before.to(held))
            x = chosen(x, drawn)
        step.state.memory[self] = _Particles(step.state.number, x, before, steered)
        return replace(updates[0], x=x[0])

    def _kept(self, step: SamplingStep) -> _Particles | None:
        """Those of the step before; others are at another noise level, and of no use."""
        kept: _Particles | None = step.state.memory.get(self)
        return kept if kept is not None and kept.number == step.state.number - 1 else None

    def _compared(self, reward: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the potentials over λ, and what the next rewards are held against."""
        if self.potential == "difference":
            return reward - before, reward
        largest = torch.maximum(reward, before)
        return largest, largest


def _check(wrong: Tensor, step: SamplingStep) -> None:
    """Refuse samples of which a particle has no reward.

    Args:
        wrong: (k, B).
        step: at which it has none.

    Raises:
        NonFiniteError: naming the first.
    """
    rows = wrong.any(0)
    if not bool(rows.any()):
        return
    row, state = int(rows.nonzero()[0]), step.state
    raise NonFiniteError(
        f"row {row} (seed {state.seeds[row]}) has a particle without a finite reward at step "
        f"{state.number} (timestep {int(state.timesteps[row])}); look at the likelihood, its "
        "targets and its model's precision"
    )
