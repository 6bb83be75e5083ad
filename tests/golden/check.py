"""Compares the library with figures recorded from the published implementations.

A file's kind is the prefix of its stem; everything else, the configuration included, is read
from the file. Weights, probes and noise come from names, by one rule: see
:func:`standard_normal` and :func:`fill`.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppap.denoisers.classifier import EncoderUNetModel
from ppap.denoisers.glide import SuperResText2ImUNet, Text2ImUNet
from ppap.denoisers.unet import UNetModel
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import Schedule, make_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from tests.golden import training_free

__all__ = [
    "KINDS",
    "TOLERANCE",
    "TRAJECTORY_TOLERANCE",
    "Golden",
    "Outcome",
    "UnreadableError",
    "check",
    "kind_of",
    "load",
    "tolerance",
    "trajectories",
]

# One step in float32 differs from one recorded on another CPU by 2e-7, a network's output by
# 1e-6 and its gradient by 3e-6.
TOLERANCE = 2e-5
# The recording of a whole trajectory is float32 itself, with roots that the recording CPU took
# to within a last bit. The published code run again on a CPU that rounds them correctly differs
# from its own recording by 3.6e-5 after 250 steps and 9e-5 after 1000. The library's side of the
# comparison is in float64, where no CPU's rounding has a say: its error is the recording's own.
TRAJECTORY_TOLERANCE = 2e-4
ETA = 0.7
EXACT = ("keys", "timestep_map")
INPUTS = ("x", "t", "y", "tokens", "mask", "low_res", "config")
INPUTS += ("timesteps", "alpha_bar", "alpha_bar_prev")
RESOLUTION = "_resolution"
STEP_FIGURE = re.compile(r"(q_sample|ddim_plain|ddim_eta|ddim|ddpm)_(\d+)")

Array = npt.NDArray[Any]
Figures = dict[str, Array]


class UnreadableError(Exception):
    """A file that holds no golden figures, or not all that its check needs."""


@dataclass(frozen=True)
class Golden:
    """One recorded file.

    Attributes:
        stem: the file's name without ``.npz``; probes and noise are named after it.
        config: the configuration it was recorded with, under its published names.
        arrays: everything else in it.
    """

    stem: str
    config: Mapping[str, Any]
    arrays: Mapping[str, Array]

    def option(self, name: str) -> Any:
        """One entry of the configuration."""
        if name not in self.config:
            raise UnreadableError(f"its config lacks {name!r}")
        return self.config[name]

    def input(self, name: str) -> Tensor:
        """A recorded input, in its recorded dtype."""
        if name not in self.arrays:
            raise UnreadableError(f"it lacks the input {name!r}")
        return torch.from_numpy(self.arrays[name])

    def draw(self, name: str, shape: torch.Size) -> Tensor:
        """The float32 input called ``<stem>/<name>``."""
        return self.named(f"{self.stem}/{name}", shape)

    def named(self, tag: str, shape: tuple[int, ...]) -> Tensor:
        """The float32 input called ``tag``."""
        return torch.from_numpy(standard_normal(tag, shape).astype(np.float32))


@dataclass(frozen=True)
class Outcome:
    """How far the library is from one file.

    Attributes:
        errors: max |difference| / max |expected| of every figure; infinite for a wrong
            shape, a value that is not finite, or an inequality where equality is asked.
        resolutions: by how much more than the tolerance a figure may be off, because the
            recording knows it no better; those that are not named, by nothing.
        unchecked: arrays in the file that no check knows.
        refusal: what the library said if it could not compute the figures, else empty.
    """

    errors: Mapping[str, float]
    resolutions: Mapping[str, float] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()
    refusal: str = ""

    def allowed(self, figure: str) -> float:
        """The largest error that a figure of this file may have."""
        return tolerance(figure) + self.resolutions.get(figure, 0.0)

    @property
    def worst(self) -> tuple[str, float]:
        """The figure that uses most of its tolerance, and its error."""
        figures = self.errors.items()
        return max(
            figures, key=lambda item: item[1] / self.allowed(item[0]), default=("", math.inf)
        )

    @property
    def agrees(self) -> bool:
        """Whether every figure is within its tolerance."""
        name, error = self.worst
        return not self.refusal and error <= self.allowed(name)


def tolerance(figure: str) -> float:
    """The largest error that a figure may have."""
    return TRAJECTORY_TOLERANCE if figure.endswith("_loop") else TOLERANCE


def standard_normal(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The draw that belongs to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def fill(key: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 parameter or buffer that belongs to a state-dict key."""
    draw = standard_normal(key, shape)
    if len(shape) >= 2:
        value = draw / math.sqrt(math.prod(shape[1:]))
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(draw)
    elif key.endswith("weight"):
        value = 1 + 0.1 * draw
    else:
        value = 0.1 * draw
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def kind_of(path: Path) -> str | None:
    """The kind of a file by the prefix of its name; None if no check knows it."""
    return next((prefix for prefix in KINDS if path.stem.startswith(prefix)), None)


def load(path: Path) -> Golden:
    """Read a file whole.

    Raises:
        UnreadableError: if it is no NumPy archive with a JSON ``config``.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        config = json.loads(str(arrays["config"]))
    except KeyError as error:
        raise UnreadableError(f"it lacks {error}") from error
    except (OSError, EOFError, ValueError, AttributeError, BadZipFile, zlib.error) as error:
        raise UnreadableError(f"not a readable .npz file: {error}".splitlines()[0]) from error
    if not isinstance(config, dict):
        raise UnreadableError("its config is no JSON object")
    config.pop("note", None)
    return Golden(path.stem, config, arrays)


def check(path: Path) -> Outcome:
    """Compute every figure of a file with the library and compare.

    Raises:
        UnreadableError: if the file is of no known kind or lacks what its check needs.
    """
    kind = kind_of(path)
    if kind is None:
        raise UnreadableError(f"no check for this kind; there are {', '.join(KINDS)}")
    golden = load(path)
    try:
        computed = KINDS[kind](golden)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        return Outcome({}, refusal=f"{type(error).__name__}: {error}".splitlines()[0])
    errors = {
        name: _error(name, golden.arrays[name], value)
        for name, value in computed.items()
        if name in golden.arrays
    }
    if not set(errors) - set(EXACT):
        raise UnreadableError("it holds no figures")
    unknown = tuple(name for name in golden.arrays if name not in errors and name not in INPUTS)
    resolutions = {
        name.removesuffix(RESOLUTION): float(value)
        for name, value in computed.items()
        if name.endswith(RESOLUTION)
    }
    return Outcome(errors, resolutions, unknown)


def _error(name: str, expected: Array, value: Array) -> float:
    if name in EXACT or name.endswith("_draws"):
        ordered = np.sort if name == "keys" else np.asarray
        return 0.0 if np.array_equal(ordered(expected), ordered(value)) else math.inf
    if value.shape != expected.shape or not np.isfinite(value).all():
        return math.inf
    difference = float(np.abs(value - expected).max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))
    error = difference / scale if scale else difference
    return error if math.isfinite(error) else math.inf


def _output_and_gradient(
    golden: Golden, x: Tensor, network: Callable[[Tensor], Tensor], suffix: str = ""
) -> Figures:
    x = x.clone().requires_grad_()
    output = network(x)
    (output * golden.draw("probe", output.shape)).sum().backward()
    assert x.grad is not None
    return {f"output{suffix}": output.detach().numpy(), f"input_grad{suffix}": x.grad.numpy()}


def _unet(golden: Golden) -> Figures:
    labels = ["y"] if golden.config.get("num_classes") is not None else []
    return _network(golden, UNetModel(**golden.config), labels)


def _classifier(golden: Golden) -> Figures:
    return _network(golden, EncoderUNetModel(**golden.config))


def _glide_base(golden: Golden) -> Figures:
    return _network(golden, Text2ImUNet(**golden.config), ("tokens", "mask"))


def _glide_upsampler(golden: Golden) -> Figures:
    network = SuperResText2ImUNet(**golden.config)
    return _network(golden, network, ("low_res", "tokens", "mask"))


def _network(golden: Golden, network: nn.Module, conditions: Sequence[str] = ()) -> Figures:
    state = network.eval().state_dict()
    network.load_state_dict({key: fill(key, value.shape) for key, value in state.items()})
    timesteps = golden.input("t")
    given = {name: golden.input(name) for name in conditions}
    figures = _output_and_gradient(
        golden, golden.input("x"), lambda x: network(x, timesteps, **given)
    )
    return {"keys": np.array(list(state)), **figures}


def _toy_network(learned_variance: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def network(x_t: Tensor, timesteps: Tensor) -> Tensor:
        epsilon = torch.tanh(0.9 * x_t + timesteps[:, None, None, None] / 1000)
        return torch.cat([epsilon, x_t.sin()], dim=1) if learned_variance else epsilon

    return network


def _toy_gradient(x_t: Tensor, timestep: int) -> Tensor:
    t = torch.full((len(x_t), 1, 1, 1), timestep)
    return 0.3 * x_t.cos() * (1 + t / 500)


def _diffusion(golden: Golden) -> Figures:
    denoiser, schedule = _toy_denoiser(golden)
    x = golden.input("x")
    figures: Figures = {
        "timestep_map": schedule.timesteps,
        "alphas_cumprod": schedule.alphas_cumprod,
        "posterior_variance": schedule.posterior_variance,
    }
    for name in golden.arrays:
        if match := STEP_FIGURE.fullmatch(name):
            index = int(match[2])
            noise = golden.draw(f"noise{index}", x.shape)
            figures[name] = _step(match[1], denoiser, schedule, index, x, noise).numpy()
    return figures | trajectories(golden, torch.float64)


def trajectories(golden: Golden, dtype: torch.dtype) -> Figures:
    """The whole trajectories of a file of kind ``diffusion_``, computed in a dtype."""
    denoiser, schedule = _toy_denoiser(golden)
    figures = {}
    for step in ("ddim", "ddpm"):
        if f"{step}_loop" in golden.arrays:
            x_t = golden.input("x").to(dtype)
            for draw, index in enumerate(reversed(range(len(schedule))), start=1):
                noise = golden.draw(f"loop{draw}", x_t.shape).to(dtype)
                x_t = _step(step, denoiser, schedule, index, x_t, noise)
            figures[f"{step}_loop"] = x_t.numpy()
    return figures


def _toy_denoiser(golden: Golden) -> tuple[Denoiser, Schedule]:
    """The recorded toy network as a denoiser, and the schedule it was sampled with."""
    full = make_schedule(golden.option("schedule"), golden.config.get("steps", 1000))
    learned = golden.option("learn_sigma")
    _, channels, height, width = golden.input("x").shape
    shape = (channels, height, width)
    denoiser = Denoiser(_toy_network(learned), full, shape, learned_variance=learned)
    return denoiser, full.respace(golden.option("spacing") or len(full))


def _step(
    figure: str, denoiser: Denoiser, schedule: Schedule, index: int, x_t: Tensor, noise: Tensor
) -> Tensor:
    timestep = int(schedule.timesteps[index])
    if figure == "q_sample":
        return schedule.add_noise(x_t, torch.full((len(x_t),), timestep), noise)
    prediction = denoiser(x_t, torch.full((len(x_t),), timestep))
    gradient = _toy_gradient(x_t, timestep)
    if figure == "ddim_plain":
        return DDIM(clip=False).step(schedule, index, x_t, prediction).x
    if figure == "ddpm":
        sampler = DDPM(fixed_variance="small")  # so the published code was set when recorded
        return sampler.step(schedule, index, x_t, prediction, gradient, noise).x
    eta = ETA if figure == "ddim_eta" else 0.0
    return DDIM(eta=eta).step(schedule, index, x_t, prediction, gradient, noise).x


def _lora_conv(golden: Golden) -> Figures:
    published = {"kernel": "kernel_size"}
    options = {published.get(key, key): value for key, value in _layer_options(golden, "conv")}
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(**options)))
    return _lora(golden, network, {"": golden.option("alpha")})


def _lora_linear(golden: Golden) -> Figures:
    network = nn.Sequential(OrderedDict(linear=nn.Linear(**dict(_layer_options(golden, "linear")))))
    # Published: the released forward pass leaves alpha / r out, as if alpha were r.
    alphas = {"_scaled": golden.option("alpha"), "_published": golden.option("r")}
    return _lora(golden, network, alphas)


def _layer_options(golden: Golden, layer: str) -> list[tuple[str, Any]]:
    """The adapted layer's own arguments; a bias is there if the file says so either way."""
    recorded = f"{layer}.bias" in golden.arrays.get("keys", ())
    options = {"bias": recorded, **golden.config}
    return [(key, value) for key, value in options.items() if key not in ("r", "alpha")]


def _lora(golden: Golden, network: nn.Sequential, alphas: Mapping[str, float]) -> Figures:
    """The output and its gradient, by suffix and alpha."""

    def lora(alpha: float) -> Adapter:
        return Adapter((Lora(golden.option("r"), alpha, layers=r"^(conv|linear)$"),))

    filled = {key: fill(key, value.shape) for key, value in network.state_dict().items()}
    fresh = lora(1.0).create(network, torch.Generator())
    recorded = {key: key.rpartition(".")[2] for key in fresh}
    own = {key: fill(recorded[key], value.shape) for key, value in fresh.items()}
    base = _as_recorded(golden, network, filled, {recorded[key]: own[key] for key in own})
    figures: Figures = {"keys": np.array([*filled, *recorded.values()])}
    for suffix, alpha in alphas.items():
        run = partial(functional_call, network, lora(alpha).effective(base, own))
        figures |= _output_and_gradient(golden, golden.input("x"), run, suffix)
    return figures


def _as_recorded(
    golden: Golden, network: nn.Module, filled: dict[str, Tensor], own: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The frozen tensors that the recorded layer had, told without the library's LoRA.

    The released layers add the update to the frozen weight when they are put in evaluation
    mode, and add it again if they are then run as unmerged. Recorded files may have been
    through that: of the two the nearer is taken.
    """
    (name,) = (key for key in filled if key.endswith("weight"))
    update = (own["lora_B"] @ own["lora_A"]).view(filled[name].shape)
    update = update * golden.option("alpha") / golden.option("r")
    figure = next(key for key in ("output", "output_scaled") if key in golden.arrays)
    distances = []
    for merged in (0, 1):
        weights = filled | {name: filled[name] + (merged + 1) * update}
        output = functional_call(network, weights, (golden.input("x"),))
        distances.append(_error(figure, golden.arrays[figure], output.detach().numpy()))
    merged = int(np.argmin(distances))
    return filled | {name: filled[name] + merged * update}


KINDS: dict[str, Callable[[Golden], Figures]] = {
    "adm_unet": _unet,
    "adm_classifier": _classifier,
    "glide_base": _glide_base,
    "glide_upsampler": _glide_upsampler,
    "diffusion_": _diffusion,
    "ppap_lora_conv": _lora_conv,
    "ppap_lora_linear": _lora_linear,
    "training_free_": training_free.steps,
}
