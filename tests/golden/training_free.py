"""Steps of training-free guidance as TFG's published implementations make them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.guide import State
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.stepping import SamplingStep, StepGuide
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.dps import DPS
from ppap.guidance.methods.freedom import FreeDoM
from ppap.guidance.methods.lgd_mc import LGD
from ppap.guidance.methods.mpgd import MPGD
from ppap.guidance.methods.tfg import TFG
from ppap.guidance.methods.universal import UniversalGuidance

if TYPE_CHECKING:
    from tests.golden.check import Golden

__all__ = ["steps"]

FIGURE = re.compile(r"eta([0-9.]+)_step(\d+)")
RENOISED = ("freedom", "ugd", "tfg")
"""Methods whose published loops go back to the noise after the last repetition as well."""


MOST = 0.01
"""Where rounding alone moves a step by more, a recording is no test."""
NUDGED = 8
"""Roundings of the input by which the resolution is measured: one alone may be lucky."""


class Smooth:
    """The recorded log-likelihood: of each pixel -0.05 (x - 0.2)^2 + 0.1 sin(2 x)."""

    def log_likelihood(self, prediction: Tensor, targets: Tensor) -> Tensor:
        del targets
        density = -0.05 * (prediction - 0.2).square() + 0.1 * (2 * prediction).sin()
        return density.flatten(2).sum(2).sum(1)


LIKELIHOOD = ImageLikelihood(lambda images: images, Smooth(), 0.0)


def _clip(config: Mapping[str, Any]) -> float | None:
    return config["clip_sample_range"] if config["clip_x0"] else None


def _lgd(config: Mapping[str, Any]) -> LGD:
    samples = int(config["guidance_name"].rpartition("_")[2])
    # The published code divides the gradient of the mean by the number of draws once more.
    return LGD(LIKELIHOOD, config["guidance_strength"] / samples, samples)


def _universal(config: Mapping[str, Any]) -> UniversalGuidance:
    strength, backward = config["guidance_strength"], max(config["iter_steps"] - 1, 0)
    return UniversalGuidance(LIKELIHOOD, strength, backward, config["recur_steps"], _clip(config))


def _tfg(config: Mapping[str, Any]) -> TFG:
    return TFG(
        LIKELIHOOD,
        rho=config["rho"],
        mu=config["mu"],
        sigma=config["sigma"],
        iterations=config["iter_steps"],
        recurrence=config["recur_steps"],
        samples=config["eps_bsz"],
        rho_spread=config["rho_schedule"],
        mu_spread=config["mu_schedule"],
        sigma_spread=config["sigma_schedule"],
        clip=_clip(config),
    )


METHODS: dict[str, Callable[[Mapping[str, Any]], StepGuide]] = {
    "dps": lambda c: DPS(LIKELIHOOD, c["guidance_strength"]),
    "freedom": lambda c: FreeDoM(
        LIKELIHOOD, c["guidance_strength"], c["recur_steps"], c["rho_schedule"]
    ),
    "lgd": _lgd,
    "mpgd": lambda c: MPGD(LIKELIHOOD, c["guidance_strength"], _clip(c)),
    "tfg": _tfg,
    "ugd": _universal,
}


def steps(golden: Golden) -> dict[str, np.ndarray]:
    """Every recorded step of a file, how many draws it took, and how well it is known.

    Near pure noise a step amplifies rounding: x̂₀ is a hundred times x_t, and a mean over draws
    weighs them by exp(log p) where log p is a float32 sum of -60 000. A recording is no better
    than that, so a step may be off by twice what it moves between float64 and float32, the input
    as it is or moved by its last bit. On one CPU alone the two may agree by chance.
    """
    name = golden.option("method")
    if name not in METHODS:
        raise ValueError(f"no training-free method {name!r}; there are {', '.join(METHODS)}")
    method = METHODS[name](golden.config)
    figures = {}
    for figure, recorded in golden.arrays.items():
        if match := FIGURE.fullmatch(figure):
            noise = partial(Noise, golden, name, match, recorded.shape)
            exact, x, *nudged = (
                _step(golden, method, match, draws)
                for draws in (
                    noise(torch.float64),
                    *(noise(torch.float32, nudge) for nudge in range(NUDGED)),
                )
            )
            apart = max(np.abs(exact.x - other.x).max() for other in (x, *nudged))
            moved = float(apart / np.abs(recorded).max())
            figures |= {
                figure: x.x,
                f"{figure}_draws": np.array(x.draws + (name in RENOISED)),
                f"{figure}_resolution": np.array(min(2 * moved, MOST)),
            }
    return figures


class Noise:
    """The named draws of one recorded step, in turn; x_t may be moved by its last bits."""

    def __init__(
        self,
        golden: Golden,
        method: str,
        match: re.Match[str],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        nudge: int = 0,
    ) -> None:
        self._golden, self._shape, self._dtype = golden, shape, dtype
        self._nudge = nudge
        self._tag = f"training_free/{method}/{match[1]}/{match[2]}"
        self.taken = 0

    def x(self) -> Tensor:
        x = self._golden.named(f"{self._tag}/x", self._shape).to(self._dtype)
        if not self._nudge:
            return x
        generator = torch.Generator().manual_seed(self._nudge)
        return x.nextafter(x + torch.randn(x.shape, generator=generator, dtype=x.dtype))

    def __call__(self) -> Tensor:
        self.taken += 1
        name = f"{self._tag}/noise{self.taken}"
        return self._golden.named(name, self._shape).to(self._dtype)


@dataclass(frozen=True)
class Step:
    """A step's result, and how many draws it took."""

    x: np.ndarray
    draws: int


def _step(golden: Golden, method: StepGuide, match: re.Match[str], noise: Noise) -> Step:
    eta, index = float(match[1]), len(golden.arrays["timesteps"]) - 1 - int(match[2])
    denoiser, schedule = _denoiser(golden)
    x_t = noise.x()
    timestep = int(schedule.timesteps[index])
    state = State(x_t, torch.full((len(x_t),), timestep), denoiser)
    # TFG draws for its Monte Carlo first; in the others the step's own noise comes first.
    first = noise() if eta > 0 and index > 0 and not isinstance(method, TFG) else None
    step = SamplingStep(DDIM(eta=eta, clip=False), schedule, index, state, first, draw=noise)
    with torch.no_grad():
        x = method.step(step).x
    return Step(x.numpy(), noise.taken)


def _denoiser(golden: Golden) -> tuple[Denoiser, Schedule]:
    """The recorded toy network, on a full schedule that has the recorded noise levels."""
    timesteps = golden.arrays["timesteps"][::-1].astype(np.int64)
    levels = golden.arrays["alpha_bar"][::-1].astype(np.float64)
    full = np.exp(np.interp(np.arange(timesteps[-1] + 1), timesteps, np.log(levels)))
    _, channels, height, width = next(
        value.shape for name, value in golden.arrays.items() if FIGURE.fullmatch(name)
    )

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.9 * x_t + t[:, None, None, None] / 1000)

    denoiser = Denoiser(network, Schedule(full), (channels, height, width))
    return denoiser, Schedule(levels, timesteps)
