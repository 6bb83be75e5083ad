"""Samples that stop being numbers: noticed, with the step at which it began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.solver import Update
from ppap.files.images import NonFiniteError, finite_rows

__all__ = ["FiniteSteps"]

CAUSES = (
    "the guide's gradient is not; look at its scale, its targets and its model's precision",
    "the denoiser's prediction is not; look at its weights, its precision and guidance scales",
    "the step is not; look at guidance scales",
)


class FiniteSteps:
    """Which samples of a batch every step has left finite, and what went into it.

    An infinite prediction counts, too: clipped, it would look like an image. Each step is looked
    at where it is computed, and the answers are read once, at the end, so that a GPU never waits.

    Args:
        seeds: of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._timesteps: list[int] = []
        self._flags: list[Tensor] = []

    def add(self, timestep: int, prediction: Prediction | None, update: Update) -> None:
        """Look at a step.

        Args:
            timestep: that it leaves.
            prediction: the denoiser's, if it is known.
            update: what the step gave.
        """
        self._timesteps.append(timestep)
        sample = finite_rows(update.x)
        known = update.gradient, None if prediction is None else prediction.epsilon
        causes = [torch.ones_like(sample) if part is None else finite_rows(part) for part in known]
        self._flags.append(torch.stack([*causes, sample]))

    def check(self) -> None:
        """Refuse samples that are not finite.

        Raises:
            NonFiniteError: naming the first, and the step from which it is not.
        """
        if not self._flags:
            return
        wrong = ~torch.stack(self._flags).cpu()  # (steps, what, B)
        if not bool(wrong.any()):
            return
        rows = wrong.any(dim=0).any(dim=0)
        row = int(rows.nonzero()[0])
        number, what = (int(place) for place in wrong[:, :, row].nonzero()[0])
        raise NonFiniteError(
            f"row {row} (seed {self._seeds[row]}) is not finite from step {number} (timestep "
            f"{self._timesteps[number]}) on, as {int(rows.sum())} of {len(rows)} samples are: "
            + CAUSES[what]
        )
