"""Noise schedules: the cumulative signal level of every timestep, in float64.

Notation is that of DDPM (Ho et al., arXiv 2006.11239): x_t = sqrt(abar_t) x_0 +
sqrt(1 - abar_t) eps. Respacing follows openai/improved-diffusion: a respaced schedule is a
schedule of fewer steps which remembers the original timestep of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppap.compute.known import outlier
from ppap.compute.options import check_number, check_whole

__all__ = ["Schedule", "check_spacing", "cosine_schedule", "linear_schedule", "make_schedule"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Signal levels of a diffusion process, most signal first.

    Attributes:
        alphas_cumprod: (T,) float64, strictly decreasing, in (0, 1).
        timesteps: (T,) int64, the original timestep of each index, increasing; it is what
            the network is shown and what experts are routed by.

    Raises:
        ValueError: if the signal levels are not strictly decreasing in (0, 1), or the timesteps
            not increasing from 0 or more.
    """

    alphas_cumprod: Floats
    timesteps: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        levels = np.asarray(self.alphas_cumprod, dtype=np.float64)
        falls = bool(np.all(np.diff(levels) < 0))
        if levels.ndim != 1 or not levels.size or not falls or not 0 < levels[-1] <= levels[0] < 1:
            raise ValueError("alphas_cumprod must fall strictly, from below 1 to above 0")
        steps = np.asarray(self.timesteps, dtype=np.int64)
        if not steps.size:
            steps = np.arange(len(levels), dtype=np.int64)
        if steps.shape != levels.shape:
            raise ValueError(
                f"{len(levels)} signal levels need as many timesteps, got {len(steps)}"
            )
        if steps[0] < 0 or (np.diff(steps) <= 0).any():
            raise ValueError(f"timesteps increase from 0 or more, got {steps.tolist()[:8]} ...")
        object.__setattr__(self, "alphas_cumprod", levels)
        object.__setattr__(self, "timesteps", steps)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def is_whole(self) -> bool:
        """Whether its timesteps are 0, 1, ..., so that each is its own index."""
        return int(self.timesteps[0]) == 0 and int(self.timesteps[-1]) == len(self) - 1

    @cached_property
    def alphas_cumprod_prev(self) -> Floats:
        """Signal level one step nearer the image; 1 before index 0."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def betas(self) -> Floats:
        """Noise added by each step, 1 - abar_i / abar_(i-1)."""
        return 1.0 - self.alphas_cumprod / self.alphas_cumprod_prev

    @cached_property
    def posterior_variance(self) -> Floats:
        """Variance of q(x_(i-1) | x_i, x_0): DDPM, equation 7."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Floats:
        """Its logarithm; index 0, where the variance is 0, borrows that of index 1."""
        variance = self.posterior_variance
        return np.log(np.append(variance[1:2] if len(self) > 1 else self.betas, variance[1:]))

    @cached_property
    def log_snr(self) -> Floats:
        """Logarithm of the signal-to-noise ratio abar / (1 - abar) of each index."""
        return np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)

    def respace(self, spacing: str | int) -> Schedule:
        """Keep a subset of the steps.

        Args:
            spacing: ``"ddim25"`` (a fixed stride from timestep 0), ``"250"`` or 250 (evenly
                from the first to the last timestep), ``"10,15,20"`` (so many steps in each of
                three equal sections), ``"fast27"`` (GLIDE's for its up-sampler),
                ``"8 to 80"`` (evenly from the last timestep down to timestep 80, and none
                below it), or diffusers' ``"linspace25"``, ``"leading25"``, ``"trailing25"``.

        Returns:
            The shorter schedule; its timesteps are those of this one.

        Raises:
            ValueError: if the spacing is malformed, asks for more steps than there are, or for one
                alone down to another timestep than the last, with which sampling has to begin.
        """
        kept = _spaced_indices(self.timesteps, str(spacing))
        levels = self.alphas_cumprod[kept]
        # Through the betas, as published: the last bit of a level near 1 matters in float32.
        betas = 1.0 - levels / np.append(1.0, levels[:-1])
        return Schedule(np.cumprod(1.0 - betas), self.timesteps[kept])

    def signal(self, timesteps: Tensor) -> Tensor:
        """abar at (B,) original timesteps: (B,) float32 on their device.

        NaN at a timestep that the schedule leaves out.

        Raises:
            TypeError: for timesteps that are no tensor of integers.
            ValueError: for one below 0 or beyond the last, where a look makes no GPU wait.
        """
        return self._levels(timesteps).float()

    def add_noise(self, x_0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t ~ q(x_t | x_0), DDPM equation 4.

        Args:
            x_0: (B, C, H, W) images in [-1, 1].
            timesteps: (B,) original timesteps.
            noise: (B, C, H, W) standard normal.

        Returns:
            (B, C, H, W) noisy images.

        Raises:
            TypeError: for timesteps that are no tensor of integers.
            ValueError: for timesteps of another shape, and as :meth:`signal`.
        """
        level = self._levels(timesteps)
        if level.shape not in ((1,), (len(x_0),)):
            raise ValueError(
                f"{len(x_0)} images need one timestep each, (B,), or one for all, (1,), got "
                f"{tuple(level.shape)}"
            )
        signal, sigma = (
            part.to(x_0.dtype).to(x_0.device)[:, None, None, None]
            for part in (level.sqrt(), (1 - level).sqrt())
        )
        return signal * x_0 + sigma * noise

    def _levels(self, timesteps: Tensor) -> Tensor:
        """abar at (B,) timesteps in float64, or in float32 on a device that has no other."""
        self._check(timesteps)
        device, places = timesteps.device, timesteps.long()  # bytes would be a mask
        tables = _TABLES.setdefault(self, {})
        if device not in tables:
            by_timestep = np.full(int(self.timesteps[-1]) + 1, np.nan)
            by_timestep[self.timesteps] = self.alphas_cumprod
            table = torch.from_numpy(by_timestep)
            table = table.float() if device.type == "mps" else table
            found = table.to(device)
            if type(found) is not Tensor:  # of a trace, and no numbers
                return found[places]
            tables[device] = found
        return tables[device][places]

    def _check(self, timesteps: Any) -> None:
        """Refuse timesteps that would be looked up elsewhere, such as -1 at the end."""
        kind = timesteps.dtype if isinstance(timesteps, Tensor) else type(timesteps).__name__
        if not isinstance(kind, torch.dtype) or kind.is_floating_point or kind == torch.bool:
            raise TypeError(f"timesteps are a tensor of integers, got {kind}")
        last = int(self.timesteps[-1])
        wrong = outlier(timesteps, 0, last) if timesteps.is_cpu else None
        if wrong is not None:
            raise ValueError(f"timesteps are from 0 to {last}, got {wrong}")


_TABLES: WeakKeyDictionary[Schedule, dict[torch.device, Tensor]] = WeakKeyDictionary()
"""The signal levels of each schedule, on each device that asked: a copy in every step would make a
GPU wait."""


def linear_schedule(steps: int = 1000) -> Schedule:
    """DDPM's schedule: beta from 1e-4 to 0.02 at 1000 steps, rescaled to any other number.

    Raises:
        ValueError: for fewer than 21 steps, of which the last would be more than all noise.
    """
    check_whole("steps", steps, 21)
    scale = 1000 / steps
    return _of_betas(np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64))


def cosine_schedule(steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """Improved DDPM's squared-cosine schedule (arXiv 2102.09672, equation 17).

    Raises:
        ValueError: for no steps, or a ``max_beta`` that is not above 0 and below 1.
    """
    check_whole("steps", steps)
    check_number("max_beta", max_beta, 0, 1 - 1e-12, above=True)

    def level(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), max_beta) for i in range(steps)]
    return _of_betas(np.array(betas, dtype=np.float64))


def make_schedule(name: str, steps: int = 1000) -> Schedule:
    """A schedule by its published name, ``"linear"`` or ``"cosine"``.

    Raises:
        ValueError: for any other name.
    """
    makers = {"linear": linear_schedule, "cosine": cosine_schedule}
    if name not in makers:
        raise ValueError(f"unknown noise schedule {name!r}; choose from {', '.join(makers)}")
    return makers[name](steps)


def check_spacing(spacing: int | str) -> None:
    """Refuse a spacing that no schedule could keep to; see :meth:`Schedule.respace`.

    Raises:
        TypeError: for what is neither a whole number nor words.
        ValueError: for no steps, or words that are none of a spacing's.
    """
    if not isinstance(spacing, str):
        check_whole("steps", spacing)
        return
    words = next((w for w in ("ddim", *DIFFUSERS_SPACINGS) if spacing.startswith(w)), "")
    rest = spacing.removeprefix(words)
    if spacing == "fast27":
        return
    many, towards, lowest = rest.partition(" to ")
    if towards and (words or not lowest.strip().isdecimal()):
        many = ""  # which is none
    for part in [rest] if words else many.split(","):
        _count(part, spacing)


def _of_betas(betas: Floats) -> Schedule:
    levels: Floats = np.cumprod(1.0 - betas, dtype=np.float64)
    return Schedule(levels)


def _spaced_indices(timesteps: npt.NDArray[np.int64], spacing: str) -> npt.NDArray[np.int64]:
    total = len(timesteps)
    if spacing.startswith("ddim"):
        count = _count(spacing.removeprefix("ddim"), spacing)
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == count:
                return np.arange(0, total, stride, dtype=np.int64)
        known = f"no integer stride takes exactly {count} of {total} steps ({spacing!r})"
        words = f"; '{count}' takes as many evenly from the first to the last: DDIM('{count}')"
        raise ValueError(known + words * (count <= total))
    if spacing == "fast27":
        kept = _spaced_indices(timesteps, "10,10,3,2,2")
        return np.append(kept[:-1], total - 3)  # less noise than the last, for DDIM's sake
    for name, spaced in DIFFUSERS_SPACINGS.items():
        if spacing.startswith(name):
            return _fitting(spaced(total, _count(spacing.removeprefix(name), spacing)), spacing)
    if " to " in spacing:
        many, lowest = spacing.split(" to ", 1)
        return _down_to(timesteps, _count(many, spacing), lowest.strip(), spacing)
    counts = [_count(part, spacing) for part in spacing.split(",")]
    size, longer = divmod(total, len(counts))
    chosen: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if count > length:
            raise ValueError(f"a section of {length} steps cannot keep {count} ({spacing!r})")
        gap = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += gap  # added up, as published: rounding depends on it
        start += length
    return np.array(sorted(set(chosen)), dtype=np.int64)


def _down_to(
    timesteps: npt.NDArray[np.int64], count: int, lowest: str, spacing: str
) -> npt.NDArray[np.int64]:
    total, last = len(timesteps), int(timesteps[-1])
    if not lowest.isdecimal() or int(lowest) not in timesteps:
        raise ValueError(
            f"there is no timestep {lowest} ({spacing!r}) among the {total} up to {last}"
        )
    first = int(np.searchsorted(timesteps, int(lowest)))
    if first + count > total:
        raise ValueError(
            f"{count} steps down to timestep {lowest} ({spacing!r}) do not fit into {total}"
        )
    if count == 1 and int(lowest) != last:
        raise ValueError(
            f"one step cannot go from timestep {last} down to {lowest} ({spacing!r}); "
            f"take 2 or more, or '1 to {last}'"
        )
    return np.linspace(first, total - 1, count).round().astype(np.int64)


def _fitting(indices: npt.NDArray[np.floating], spacing: str) -> npt.NDArray[np.int64]:
    """Sorted indices from floats; refused unless they are different and not negative."""
    kept = np.sort(indices.round().astype(np.int64))
    if kept[0] < 0 or (np.diff(kept) == 0).any():
        raise ValueError(f"more timesteps are asked for than there are steps ({spacing!r})")
    return kept


DIFFUSERS_SPACINGS: dict[str, Callable[[int, int], npt.NDArray[np.floating]]] = {
    "linspace": lambda total, count: np.linspace(0, total - 1, count + 1)[1:],
    "leading": lambda total, count: np.arange(1, count + 1) * float(total // (count + 1)),
    "trailing": lambda total, count: np.arange(count) * -(total / count) + total - 1.0,
}
"""Timesteps of diffusers' schedulers, by ``timestep_spacing``: (of how many, how many)."""


def _count(text: str, spacing: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"bad spacing {spacing!r}; write 'ddim25', '250', '10,15,20' or '8 to 80'")
    return int(text)
