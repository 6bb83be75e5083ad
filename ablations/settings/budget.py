"""Budgets: how much of an experiment is run."""

from __future__ import annotations

from dataclasses import dataclass

from ablations.errors import UserError

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """How much of an experiment is run.

    Attributes:
        seeds: training seeds per row; each trains its own experts and draws its own samples.
        samples: per seed and row.
        synthetic: images drawn for data-free transfer.
        steps: optimiser steps per model, all experts together.
        batch: images per step.
        scales: guidance scales to select a row's from, where it is selected.
        selection_samples: per scale and row, on seeds that no row is measured on.
        ancestral_samples: per seed and row, of the slow sampler, DDPM.
        ancestral_steps: timesteps of the slow sampler.
        noisy_images: test images on which accuracy against noise is measured.
        trials: of a method's options, where methods are compared at an equal budget of search.
        timed_images: per batch of the throughput measurement.
        resamples: bootstrap replicates of an FID; a mean gets five times as many.
        expert_counts: numbers of experts to compare.
        units: training seeds of a curve, or blocks of sampling seeds where nothing is trained.
        curve_samples: per unit and scale of a curve.
        curve_scales: guidance scales of a curve, rising.
        doublings: of the largest scale at most, while the best score of a curve is there.

    Raises:
        UserError: for a budget without seeds, steps or scales, or with fewer than ten samples.
    """

    seeds: int
    samples: int
    synthetic: int
    steps: int
    batch: int
    scales: tuple[float, ...]
    selection_samples: int
    ancestral_samples: int = 200
    ancestral_steps: int = 250
    noisy_images: int = 1_000
    trials: int = 12
    timed_images: int = 64
    resamples: int = 200
    expert_counts: tuple[int, ...] = (1, 2, 3, 5, 8, 10)
    units: int = 8
    curve_samples: int = 300
    curve_scales: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0, 32.0)
    doublings: int = 6

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.samples < 10 or self.steps < 1 or not self.scales:
            raise UserError(
                f"a budget needs at least 1 seed, 10 samples and 1 step, got {self.seeds}, "
                f"{self.samples} and {self.steps}",
                "raise --seeds, --samples or --steps",
            )
