"""What a training step draws: which images, at which noise levels, and the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppap.diffusion.streams import derived_generator

__all__ = ["Draws"]


@dataclass(frozen=True)
class Draws:
    """The draws of a training's steps; they depend on its seed and the step alone.

    So an arm that differs in one thing sees the same images and noise everywhere else, and a
    training that goes on after an interruption needs no state of a generator.

    Noise is drawn where it is used: at 256 x 256 pixels a batch of 256 is 50 million numbers,
    which one core draws more slowly than a GPU trains. Each kind of device has a stream of its
    own, so that two GPUs of a kind train on the same noise and a GPU and a CPU on different.

    Attributes:
        seed: of the training.
        batch: images per step, in all processes together.
        device: where noise is wanted.
    """

    seed: int
    batch: int
    device: torch.device

    def step(
        self, number: int, images: torch.Size, bounds: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The draws of one step.

        Args:
            number: of the step.
            images: the shape (N, C, H, W) of all images.
            bounds: ranges of timesteps [low, high), which share the batch evenly.

        Returns:
            (B,) int64 chosen images and (B,) int64 timesteps on the CPU, and standard normal
            noise (B, C, H, W) on the device.
        """
        generator = derived_generator(self.seed, number)
        chosen = torch.randint(images[0], (self.batch,), generator=generator)
        share = (self.batch // len(bounds),)
        timesteps = torch.cat([torch.randint(*b, share, generator=generator) for b in bounds])
        if self.device.type != "cpu":
            generator = derived_generator(self.seed, number, device=self.device)
        shape = (self.batch, *images[1:])
        noise = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32)
        return chosen, timesteps, noise
