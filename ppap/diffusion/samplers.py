"""Former place of the samplers and of the loop."""

from __future__ import annotations

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM, step_variance
from ppap.diffusion.sampling import sample, trajectory
from ppap.diffusion.solver import Sampler

__all__ = ["DDIM", "DDPM", "Sampler", "sample", "step_variance", "trajectory"]
