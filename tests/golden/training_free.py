"""Steps of training-free guidance as TFG's published implementations make them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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
from ppap.diffusion.stepping import SamplingStep
from ppap.guidance.likelihoods import ImageLikelihood
from ppap.guidance.methods.base import LikelihoodMethod
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
PUBLISHED = {
    "clip_x0": True,
    "clip_sample_range": 1.0,
    "recur_steps": 1,
    "iter_steps": 1,
    "guidance_strength": 1.0,
    "rho": 1.0,
    "mu": 1.0,
    "sigma": 0.01,
    "eps_bsz": 4,
    "rho_schedule": "increase",
    "mu_schedule": "increase",
    "sigma_schedule": "decrease",
}
"""What the published code takes where a configuration says nothing."""


MOST = 0.01
"""Where rounding alone moves a step by more, a recording is no test."""
NUDGED = 8
"""Roundings of the inputs by which the resolution is measured: one alone may be lucky."""


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


METHODS: dict[str, Callable[[Mapping[str, Any]], LikelihoodMethod]] = {
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
    than that, so a step may be off by twice what it moves between float64 and float32, the inputs
    as they are or moved by their last bits. On one CPU alone the two may agree by chance. Of the
    two, that which is nearer to the recording counts.
    """
    name = golden.option("method")
    if name not in METHODS:
        raise ValueError(f"no training-free method {name!r}; there are {', '.join(METHODS)}")
    if name == "lgd":
        golden.option("guidance_name")
    method = METHODS[name](PUBLISHED | golden.config)
    found = [match for figure in golden.arrays if (match := FIGURE.fullmatch(figure))]
    named = _named_after(golden, method, found[:1])
    figures = {}
    for match in found:
        figure, recorded = match[0], golden.arrays[match[0]]
        exact = _step(golden, method, match, Inputs(golden, named, match, torch.float64))
        x, *nudged = (
            _step(golden, method, match, Inputs(golden, named, match, torch.float32, nudge))
            for nudge in range(NUDGED)
        )
        apart = max(_apart(exact.x, other.x) for other in (x, *nudged))
        moved = apart / float(np.abs(recorded).max())
        figures |= {
            figure: min(exact.x, x.x, key=partial(_apart, recorded)),
            f"{figure}_draws": np.array(exact.draws + (name in RENOISED)),
            f"{figure}_resolution": np.array(min(2 * moved, MOST)),
        }
    return figures


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def _named_after(golden: Golden, method: LikelihoodMethod, some: Sequence[re.Match[str]]) -> str:
    """What draws are named after: the method, or the whole of what the file is.

    Of a file called ``training_free_tfg_eta1``, the method ``tfg`` or ``tfg_eta1``: what brings a
    step nearer to the recorded one.
    """
    names = dict.fromkeys((golden.option("method"), golden.stem.removeprefix("training_free_")))

    def distance(name: str) -> float:
        inputs = (Inputs(golden, name, match, torch.float32) for match in some)
        return sum(
            _apart(_step(golden, method, match, own).x, golden.arrays[match[0]])
            for match, own in zip(some, inputs, strict=True)
        )

    return min(names, key=distance)


class Inputs:
    """The named inputs of one recorded step, its draws in turn; moved by their last bits or not."""

    def __init__(
        self,
        golden: Golden,
        named: str,
        match: re.Match[str],
        dtype: torch.dtype,
        nudge: int = 0,
    ) -> None:
        self._golden, self._dtype = golden, dtype
        self._shape = golden.arrays[match[0]].shape
        self._generator = torch.Generator().manual_seed(nudge) if nudge else None
        self._tag = f"training_free/{named}/{match[1]}/{match[2]}"
        self.taken = 0

    def x(self) -> Tensor:
        return self._of(self._golden.named(f"{self._tag}/x", self._shape).to(self._dtype))

    def __call__(self) -> Tensor:
        self.taken += 1
        name = f"{self._tag}/noise{self.taken}"
        return self._of(self._golden.named(name, self._shape).to(self._dtype))

    def schedule(self) -> Schedule:
        """The recorded noise levels, nearest to the image first."""
        timesteps = self._golden.input("timesteps").flip(0)
        levels = self._of(self._golden.input("alpha_bar").flip(0))
        return Schedule(levels.double().numpy(), timesteps.numpy())

    def _of(self, value: Tensor) -> Tensor:
        if self._generator is None:
            return value
        aside = torch.randn(value.shape, generator=self._generator, dtype=value.dtype)
        return value.nextafter(value + aside)


@dataclass(frozen=True)
class Step:
    """A step's result, and how many draws it took."""

    x: np.ndarray
    draws: int


class PublishedStep(SamplingStep):
    """A step that draws noise wherever the timestep is not 0: in the last one, it is times 0."""

    def _further_noise(self) -> Tensor:
        above = self.schedule.timesteps[self.index] > 0
        return self.draw() if above else super()._further_noise()


def _step(golden: Golden, method: LikelihoodMethod, match: re.Match[str], inputs: Inputs) -> Step:
    schedule, x_t = inputs.schedule(), inputs.x()
    eta, index = float(match[1]), len(schedule) - 1 - int(match[2])
    timestep = int(schedule.timesteps[index])
    denoiser = Denoiser(_network, schedule, tuple(x_t.shape[1:]))
    state = State(x_t, torch.full((len(x_t),), timestep), denoiser)
    # TFG draws for its Monte Carlo first; in the others the step's own noise comes first.
    first = inputs() if eta > 0 and timestep > 0 and not isinstance(method, TFG) else None
    step = PublishedStep(DDIM(eta=eta, clip=False), schedule, index, state, first, draw=inputs)
    with torch.no_grad():
        x = method.guided(step).x  # also at a scale of 0, where step() would leave all out
    return Step(x.numpy(), inputs.taken)


def _network(x_t: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.9 * x_t + t[:, None, None, None] / 1000)
