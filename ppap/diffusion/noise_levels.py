"""Which noise a model was made for: a timestep alone says nothing of it.

Timestep 500 of a cosine schedule is less than half of the noise that it is of a linear one. A
model that learned on the one and guides on the other is shown noise that it has never seen, and
gives gradients all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ppap.compute.modules import Networks
from ppap.diffusion.schedule import Schedule

__all__ = ["NoiseLevels", "NoiseLevelsError", "check_schedule"]

PLACES = 17
"""How many levels are kept, evenly from the first timestep to the last."""
SAME = 0.05
"""Difference in log(abar / (1 - abar)) below which levels are the same: tables are kept in float32,
in which that of the least noise is off by 0.001."""
EXTREME = 12.0
"""Beyond it, in either direction, one level is as good as another."""


class NoiseLevelsError(ValueError):
    """A model that was made for other noise levels than those it is to see."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of a schedule, at some of its timesteps.

    Attributes:
        steps: length of the schedule.
        log_snr: log(abar / (1 - abar)) at 17 timesteps, evenly from the first to the last.
    """

    steps: int
    log_snr: tuple[float, ...]

    @classmethod
    def of(cls, schedule: Schedule) -> NoiseLevels:
        """A full schedule's."""
        found = schedule.log_snr[_places(len(schedule))].clip(-EXTREME, EXTREME)
        return cls(len(schedule), tuple(round(float(level), 5) for level in found))

    def written(self) -> dict[str, Any]:
        """What a JSON file can hold."""
        return {"steps": self.steps, "log_snr": list(self.log_snr)}

    @classmethod
    def read(cls, written: dict[str, Any]) -> NoiseLevels:
        """From what :meth:`written` gave.

        Raises:
            KeyError, TypeError, ValueError: if it is something else.
        """
        levels = tuple(map(float, written["log_snr"]))
        if len(levels) != PLACES or not np.isfinite(levels).all():
            raise ValueError(f"noise levels are {PLACES} finite numbers, got {levels}")
        return cls(int(written["steps"]), levels)

    def check(self, schedule: Schedule, what: str) -> None:
        """Refuse a schedule of other noise levels.

        Args:
            schedule: the full one.
            what: was made for these levels, for the message.

        Raises:
            NoiseLevelsError: naming a timestep, and both levels there.
        """
        if len(schedule) != self.steps:
            raise NoiseLevelsError(
                f"{what} is made for a noise schedule of {self.steps} timesteps, the denoiser's "
                f"has {len(schedule)}"
            )
        apart = np.abs(np.subtract(NoiseLevels.of(schedule).log_snr, self.log_snr))
        if apart.max() > SAME:
            place = int(apart.argmax())
            timestep = int(_places(self.steps)[place])
            theirs = 1 / (1 + np.exp(-self.log_snr[place]))
            raise NoiseLevelsError(
                f"{what} is made for another noise schedule: at timestep {timestep} its share of "
                f"signal is {theirs:.3g}, the denoiser's is "
                f"{schedule.alphas_cumprod[timestep]:.3g}; train it on this denoiser's noise"
            )


def _places(steps: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, steps - 1, PLACES).round().astype(np.int64)


def check_schedule(networks: Networks, schedule: Schedule) -> None:
    """Refuse models made for another schedule.

    A model says what it was made for by an attribute ``noise_steps``, the length of its schedule,
    or ``noise_levels``, if it knows them; as an expert bank does.

    Args:
        networks: what guides.
        schedule: the denoiser's, in full.

    Raises:
        NoiseLevelsError: naming what differs.
    """
    for module in networks.modules:
        for part in module.modules():
            steps, kind = getattr(part, "noise_steps", None), type(part).__name__
            if isinstance(steps, int | np.integer) and steps != len(schedule):
                raise NoiseLevelsError(
                    f"the guide's {kind} is made for a noise schedule of {steps} "
                    f"timesteps, the denoiser's has {len(schedule)}"
                )
            levels = getattr(part, "noise_levels", None)
            if isinstance(levels, NoiseLevels):
                levels.check(schedule, f"the guide's {kind}")
