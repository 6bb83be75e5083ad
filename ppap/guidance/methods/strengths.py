"""How strength is spread over the steps: TFG (Ye et al., arXiv 2409.15761), section 3.3."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ppap.diffusion.stepping import SamplingStep

__all__ = ["NoiseSpread", "Spread", "check_spreads", "spread"]

Spread = Literal["increase", "decrease", "constant"]
"""From noise to image: in proportion to alpha_t, to 1 - alpha_t, or the same at every step."""

NoiseSpread = Literal["decrease", "constant"]
"""From noise to image: in proportion to sqrt(1 - abar_t), or the same at every step."""


def spread(kind: Spread, step: SamplingStep) -> float:
    """The share of one step, relative to a mean of 1 over all of them."""
    betas = step.schedule.betas  # 1 - alpha_t
    shares = {"increase": 1 - betas, "decrease": betas, "constant": np.ones(len(betas))}[kind]
    return float(shares[step.index] / shares.mean())


def check_spreads(*kinds: str, noise: str = "decrease") -> None:
    """Refuse what is no :data:`Spread`, or no :data:`NoiseSpread`.

    Raises:
        ValueError: then.
    """
    for kind, known in [
        *((kind, get_args(Spread)) for kind in kinds),
        (noise, get_args(NoiseSpread)),
    ]:
        if kind not in known:
            raise ValueError(f"unknown spread {kind!r}; choose from {', '.join(known)}")
