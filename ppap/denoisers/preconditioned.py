"""Preconditioning: what a noisy image tells linearly passes by the network."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ppap.diffusion.schedule import Schedule

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module):
    """A velocity predictor whose network adds to what is linear in the noisy image.

    Karras et al. (arXiv 2206.00364, section 5) in terms of the velocity: the best linear
    estimate passes by the network, which sees inputs and owes outputs of unit variance. A
    network too narrow to hand its noisy input through need not.

    Args:
        network: called as ``network(x_t, timesteps, **conditions)``.
        schedule: of the noise.
        spread: root mean square of the images in [-1, 1].
    """

    def __init__(self, network: nn.Module, schedule: Schedule, spread: float) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.spread = spread

    def signal(self, timesteps: Tensor) -> Tensor:
        """(B, 1, 1, 1) float32 signal level of (B,) timesteps."""
        return self.schedule.signal(timesteps)[:, None, None, None]

    def output_scale(self, timesteps: Tensor) -> Tensor:
        """(B, 1, 1, 1) root mean square of what the network adds to the velocity."""
        level = self.signal(timesteps)
        return self.spread * (level * self.spread**2 + 1 - level).rsqrt()

    def forward(self, x_t: Tensor, timesteps: Tensor, **conditions: Tensor) -> Tensor:
        """(B, C, H, W) velocity for (B, C, H, W) noisy images at (B,) timesteps.

        Conditions, such as (B,) labels ``y``, reach the network as they are.
        """
        level = self.signal(timesteps)
        variance = level * self.spread**2 + 1 - level
        linear = (level * (1 - level)).sqrt() * (1 - self.spread**2) / variance
        rest = self.output_scale(timesteps)
        seen = (x_t * variance.rsqrt()).to(x_t.dtype)
        found = self.network(seen, timesteps, **conditions)
        return linear * x_t + rest * cast(Tensor, found)
