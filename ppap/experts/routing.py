"""Routing: noise ranges, and which expert a timestep belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppap.compute.options import check_whole
from ppap.diffusion.schedule import Floats, Schedule

__all__ = ["NoiseRanges", "check_not_traced"]


@dataclass(frozen=True)
class NoiseRanges:
    """Half-open ranges of timesteps, [b_0, b_1), [b_1, b_2), ...: low noise to high.

    Attributes:
        boundaries: N + 1 increasing timesteps from 0 to the schedule's length.
        inclusive: whether a boundary is routed to the range below it, which never trained
            there: the released code's rule, for comparison with it.

    Raises:
        TypeError: for boundaries that are no whole numbers.
        ValueError: if they do not start at 0 or do not increase.
    """

    boundaries: tuple[int, ...]
    inclusive: bool = False

    def __post_init__(self) -> None:
        for boundary in self.boundaries:
            check_whole("a boundary", boundary, 0)
        # Whatever sequence of whatever integers was given, equal ranges are equal, and hashed.
        object.__setattr__(self, "boundaries", tuple(map(int, self.boundaries)))
        rising = all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False))
        if len(self.boundaries) < 2 or self.boundaries[0] != 0 or not rising:
            raise ValueError(f"boundaries must increase from 0, got {self.boundaries}")

    @classmethod
    def equal(cls, count: int, steps: int = 1000) -> NoiseRanges:
        """``count`` ranges of equal width, as in the paper: boundaries int(i steps / count)."""
        check_whole("the number of experts", count)
        check_whole("steps", steps)
        if not 1 <= count <= steps:
            raise ValueError(f"between 1 and {steps} experts can share {steps} steps, got {count}")
        return cls(tuple(i * steps // count for i in range(count + 1)))

    @classmethod
    def equal_log_snr(cls, count: int, schedule: Schedule) -> NoiseRanges:
        """``count`` ranges that span equal parts of log(abar / (1 - abar)) from first to last."""
        fallen = schedule.log_snr[0] - schedule.log_snr
        return cls(_split(fallen, np.linspace(0, fallen[-1], count + 1)[1:-1]))

    @classmethod
    def balanced(cls, weights: Tensor, count: int) -> NoiseRanges:
        """``count`` ranges of equal total weight, as near as whole timesteps allow.

        Args:
            weights: (T,) non-negative, e.g. the transfer loss at every timestep.
            count: of ranges.

        Raises:
            ValueError: for negative weights, or none.
        """
        values = weights.detach().cpu().double().numpy()
        fine = (values >= 0).all() and 0 < values.sum() < np.inf
        if values.ndim != 1 or values.size < count or not fine:
            raise ValueError(
                f"expected (T,) non-negative, finite weights, T >= {count}, not all 0, "
                f"got shape {values.shape}"
            )
        before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
        return cls(_split(before, values.sum() * np.arange(1, count) / count))

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    def bounds(self, expert: int) -> tuple[int, int]:
        """First timestep of an expert's range, and the first one beyond it."""
        return self.boundaries[expert], self.boundaries[expert + 1]

    def expert_of(self, timesteps: Tensor, count: int | None = None) -> Tensor:
        """(B,) expert of each of (B,) timesteps; a boundary belongs to the range above it.

        Args:
            timesteps: (B,) from 0.
            count: B, of which a single timestep stands for all; None for whatever is given.

        Raises:
            ValueError: for a timestep outside all ranges, or another number of them.
        """
        if count is not None and tuple(timesteps.shape) not in {(count,), (1,)}:
            raise ValueError(
                f"{count} images have timesteps ({count},), got {tuple(timesteps.shape)}"
            )
        low, high = self.boundaries[0], self.boundaries[-1]
        if timesteps.numel() and not (low <= timesteps.min() and timesteps.max() < high):
            raise ValueError(f"timesteps must lie in [{low}, {high}), got {timesteps.tolist()}")
        inner = torch.tensor(self.boundaries[1:-1], device=timesteps.device)
        return torch.bucketize(timesteps.contiguous(), inner, right=not self.inclusive)


def check_not_traced() -> None:
    """Refuse a graph that would hold the experts of its example's timesteps.

    Raises:
        RuntimeError: within torch.export or torch.jit.trace.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or torch.compiler.is_exporting():
        raise RuntimeError(
            "a bank chooses experts by the values of timesteps, which an exported or traced graph "
            "does not look at; export what bank.merge(expert) gives, and save it before another "
            "is merged"
        )


def _split(rising: Floats, cuts: Floats) -> tuple[int, ...]:
    """Boundaries at the first timesteps that reach the cuts, moved apart where they coincide."""
    total = len(rising)
    count = len(cuts) + 1
    found = [0]
    for place, cut in enumerate(cuts):
        first = int(np.searchsorted(rising, cut))
        found.append(min(max(first, found[-1] + 1), total - (count - 1 - place)))
    return (*found, total)
