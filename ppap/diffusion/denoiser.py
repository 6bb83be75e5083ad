"""Denoisers: a network and its noise schedule, whatever the network was trained to predict."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.compute.modules import Networks, evaluating, weights_dtype
from ppap.compute.options import check_choice, check_whole
from ppap.diffusion.schedule import Schedule

__all__ = [
    "Denoiser",
    "Prediction",
    "RescaledTimesteps",
    "SpaceToDepth",
    "freeze",
    "module_device",
]

Target = Literal["epsilon", "x_0", "v"]
CONDITION = "condition_"


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of a noisy batch, all (B, C, H, W).

    Attributes:
        epsilon: the predicted noise.
        variance_fraction: for a network with learned variance, its raw output in about
            [-1, 1], which interpolates log-variances (Improved DDPM, equation 15) between
            the posterior's (-1) and beta (1); None where the variance is fixed.
    """

    epsilon: Tensor
    variance_fraction: Tensor | None = None


class Denoiser(nn.Module):
    """A network and the schedule it was trained on: (x_t, t) -> :class:`Prediction`.

    Args:
        network: called as ``network(x_t, timesteps, **conditions)``; a diffusers-style output
            object with a ``sample`` attribute is unwrapped.
        schedule: the full schedule of training; its timesteps are what the network is shown.
        shape: (C, H, W) of the images.
        target: what the network predicts: ``"epsilon"``, ``"x_0"`` or ``"v"`` (Salimans &
            Ho, arXiv 2202.00512).
        learned_variance: whether the second half of the output channels is the
            variance fraction.
        decode: for a denoiser of latents, their decoder: (B, C, H, W) -> images in [-1, 1], or a
            diffusers-style output object with them; a module moves with the denoiser. What is
            sampled are then latents until the end, guides see images, and ``sample`` returns them;
            sample with ``clip=False``.

    Raises:
        TypeError: for a network that cannot be called or what is no schedule, and at the call for a
            network that returns no tensor.
        ValueError: for an unknown target, a shape that is none, and at the call for an output of a
            wrong shape.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: Schedule,
        shape: tuple[int, int, int],
        target: Target = "epsilon",
        learned_variance: bool = False,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_choice("target", target, get_args(Target))
        if not callable(network):
            raise TypeError(f"a network is called as (x_t, timesteps), got {network!r}")
        if not isinstance(schedule, Schedule):
            raise TypeError(
                "a noise schedule is such as ppap.diffusion.schedule.linear_schedule(), or "
                f"Schedule(alphas_cumprod) there, got {type(schedule).__name__}"
            )
        if not hasattr(shape, "__len__") or len(shape) != 3:
            raise ValueError(f"images have a shape (C, H, W), got {shape}")
        for size in shape:
            check_whole("a size of the shape (C, H, W)", size)
        channels, height, width = map(int, shape)
        self.network = network
        self.schedule = schedule
        self.shape = (channels, height, width)
        self.target = target
        self.learned_variance = learned_variance
        self.decoder = decode

    def with_conditions(self, **conditions: Tensor | Sequence[Any] | float) -> Denoiser:
        """This denoiser under conditions, sharing its network.

        Args:
            conditions: what the network takes besides (x_t, t), e.g. ``y=labels``: (N, ...)
                one row per image, or (1, ...) one for all, as a tensor, an array or a list; a
                number is one for all.

        Raises:
            TypeError: for what is none of these, or a name that the network does not take.
            ValueError: for conditions that are for different numbers of images.
        """
        _check_names(self.network, conditions)
        other = Denoiser(
            self.network,
            self.schedule,
            self.shape,
            self.target,
            self.learned_variance,
            self.decoder,
        )
        device = module_device(self)
        rows = {name: _rows(name, value) for name, value in (self.conditions | conditions).items()}
        counts = {name: len(value) for name, value in rows.items() if len(value) != 1}
        if len({*counts.values()}) > 1:
            each = ", ".join(f"{name} for {count}" for name, count in counts.items())
            raise ValueError(f"conditions are all for as many images, or one for all; got {each}")
        for name, value in rows.items():
            other.register_buffer(CONDITION + name, value.to(device), persistent=False)
        other.training = self.training
        return other

    @property
    def conditions(self) -> dict[str, Tensor]:
        """What :meth:`with_conditions` has set, by name."""
        return {
            name.removeprefix(CONDITION): value for name, value in self.named_buffers(recurse=False)
        }

    @property
    def condition_count(self) -> int | None:
        """How many images the conditions are for; None if any number."""
        return next((len(value) for value in self.conditions.values() if len(value) > 1), None)

    def rows(self, chosen: slice) -> Denoiser:
        """The denoiser of some of the images that its conditions are for."""
        if self.condition_count is None:
            return self
        return self.with_conditions(
            **{
                name: value[chosen] if len(value) > 1 else value
                for name, value in self.conditions.items()
            }
        )

    def decode(self, x_0: Tensor) -> Tensor:
        """The images in [-1, 1] that clean samples (B, C, H, W) stand for; differentiable.

        A decoder is shown latents of its own precision, and one of diffusers' may return its
        output object.

        Raises:
            TypeError: for a decoder that returns no tensor.
            ValueError: for one that returns anything but a floating-point image for each sample.
        """
        if self.decoder is None:
            return x_0
        module = getattr(self.decoder, "__self__", self.decoder)  # of a method, such as vae.decode
        shown = x_0.to(weights_dtype(module, x_0.dtype))
        images = _unwrapped(self.decoder(shown), "decoder")
        if images.ndim != 4 or len(images) != len(x_0) or not images.is_floating_point():
            raise ValueError(
                f"a decoder returns images (B, C, H, W) in [-1, 1], {len(x_0)} of as many latents, "
                f"got {tuple(images.shape)} of {images.dtype}"
            )
        return images.to(x_0.dtype)

    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that clean samples stand for; a decoder is asked for one."""
        if self.decoder is None:
            return self.shape
        with torch.no_grad(), evaluating(self):
            one = torch.zeros(1, *self.shape, dtype=torch.float32, device=module_device(self))
            decoded = self.decode(one)
        _, channels, height, width = decoded.shape
        return channels, height, width

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Prediction:
        """Predict the noise in ``x_t``: (B, C, H, W), at original ``timesteps``: (B,)."""
        for name, value in self.conditions.items():
            if len(value) not in (1, len(x_t)):
                raise ValueError(f"{name} is given for {len(value)} images, got {len(x_t)}")
        # Copies, which a network that computes in place may overwrite.
        given = {name: value.clone() for name, value in self.conditions.items()}
        shown = x_t.to(weights_dtype(self.network, x_t.dtype), copy=True)
        raw = self.network(shown, timesteps.clone(), **given)
        output = _unwrapped(raw, "network")
        output = output.to(x_t.dtype)  # under autocast a network may return bfloat16
        fraction = None
        if self.learned_variance:
            output, fraction = output.chunk(2, dim=1)
        if output.shape != x_t.shape:
            raise ValueError(
                f"the network returned {tuple(output.shape)} for images {tuple(x_t.shape)}; "
                "learned_variance must be True exactly if it has twice the channels"
            )
        return Prediction(self._to_epsilon(output, x_t, timesteps), fraction)

    def _to_epsilon(self, output: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        if self.target == "epsilon":
            return output
        level = self.schedule.signal(timesteps)[:, None, None, None]
        if self.target == "x_0":
            return (x_t - level.sqrt() * output) / (1 - level).sqrt()
        return level.sqrt() * output + (1 - level).sqrt() * x_t


class SpaceToDepth(nn.Module):
    """Run a network on images folded ``factor`` times smaller, with factor^2 the channels.

    The fold is exact and reversible; it makes a convolutional network about factor^2 times
    cheaper at the same width. Conditions reach the network as they are.
    """

    def __init__(self, network: nn.Module, factor: int = 2) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, x_t: Tensor, timesteps: Tensor, **conditions: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W); the network sees (B, C factor^2, H/f, W/f)."""
        folded = F.pixel_unshuffle(x_t, self.factor)
        found = _unwrapped(self.network(folded, timesteps, **conditions), "network")
        return F.pixel_shuffle(found, self.factor)


class RescaledTimesteps(nn.Module):
    """A network that is shown its timesteps times ``factor``, as improved-diffusion's are."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, x_t: Tensor, timesteps: Tensor, **conditions: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), whatever the network makes of it."""
        return cast(Tensor, self.network(x_t, timesteps.float() * self.factor, **conditions))


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode and no gradient for any parameter, in place; returns the module."""
    return module.eval().requires_grad_(False)


def _check_names(network: Callable[..., Any], names: Iterable[str]) -> None:
    """Refuse conditions that a network does not take, where it says what it takes."""
    called = network.forward if isinstance(network, nn.Module) else network
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):  # of a callable that has no signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        if isinstance(network, SpaceToDepth | RescaledTimesteps):
            _check_names(network.network, names)
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes = [parameter.name for parameter in parameters[2:] if parameter.kind in by_name]
    if unknown := [name for name in names if name not in takes]:
        raise TypeError(
            f"{getattr(network, '__name__', type(network).__name__)} takes no condition "
            f"{', '.join(unknown)}; besides (x_t, timesteps) it takes {', '.join(takes) or 'none'}"
        )


def _rows(name: str, value: Any) -> Tensor:
    """A condition's rows (N, ...)."""
    try:
        rows = value if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the condition {name} is a tensor (N, ...), or numbers that make one, got {value!r}"
        ) from error
    return rows if rows.ndim else rows[None]


def _unwrapped(output: Any, what: str) -> Tensor:
    """What a denoiser's network or decoder returned, out of an output object of diffusers'."""
    found = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"a denoiser's {what} returns a tensor (B, C, H, W), or an object whose attribute "
            f"sample is one, got {type(output).__name__}"
        )
    return found


def module_device(module: nn.Module) -> torch.device:
    """The device of a module's first parameter.

    Of a module with none it is that of a network that its functions call; the CPU without any.
    """
    parameter = next(module.parameters(), None)
    if parameter is None:
        called = (weight for network in Networks(module).modules for weight in network.parameters())
        parameter = next(called, None)
    return torch.device("cpu") if parameter is None else parameter.device
