"""The one loop: from noise to images, a batch at a time, whatever the sampler and the guide."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppap.compute.modules import Networks, evaluating
from ppap.compute.options import check_whole
from ppap.compute.precision import Precision, autocast, check_precision
from ppap.compute.progress import Progress, reporting
from ppap.diffusion.arguments import check_arguments, tell_of_clipped_latents
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, module_device
from ppap.diffusion.dependence import Dependence
from ppap.diffusion.finite import FiniteSteps
from ppap.diffusion.guide import State
from ppap.diffusion.noise_levels import check_schedule
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.diffusion.stepping import AnyGuide, StepGuide, Stepper, plain_step
from ppap.diffusion.streams import NoiseStreams
from ppap.files.images import check_finite

__all__ = ["Step", "joined", "sample", "seed_list", "trajectory"]


@dataclass(frozen=True)
class Step:
    """One step of a trajectory, as its observer sees it.

    Attributes:
        seeds: of the batch, one per image.
        number: of the step, from 0 at the noisiest timestep.
        timestep: the original timestep that the step leaves.
        x_t: (B, C, H, W) before the step.
        x_0: (B, C, H, W), the image predicted at ``timestep``, which the step went towards.
        gradient: (B, C, H, W), scaled, what guided the step; None if nothing did.
        x: (B, C, H, W) after the step; the last one's is the image.
    """

    seeds: Sequence[int]
    number: int
    timestep: int
    x_t: Tensor
    x_0: Tensor
    gradient: Tensor | None
    x: Tensor


@torch.inference_mode(mode=False)
@torch.no_grad()
def trajectory(
    denoiser: Denoiser,
    seeds: Sequence[int],
    guide: AnyGuide | None = None,
    sampler: Sampler | None = None,
    *,
    x_T: Tensor | None = None,  # noqa: N803
    precision: Precision = "fp32",
    stepper: Stepper = plain_step,
) -> Iterator[Step]:
    """Sample one batch, yielding every step.

    Args:
        denoiser: what is sampled from; computation runs on its device.
        seeds: one per image.
        guide: its targets are for these images.
        sampler: ``DDIM(25)`` by default.
        x_T: (B, C, H, W), the noise to begin with; by default each seed's own. The noise of
            later steps is the seed's in either case.
        precision: in which networks compute, the guide's included; the steps are float32.
        stepper: how steps are computed, :func:`ppap.diffusion.stepping.plain_step` or one that
            agrees with it up to rounding.

    Yields:
        The steps, noisiest first.

    Raises:
        NoiseLevelsError: if the guide's model is made for another noise schedule.
        NonFiniteError: instead of the last step, if a sample is not finite.
        TypeError: if a guide gives neither a gradient nor None, or a step no update.
        ValueError: if the guide or the sampler writes into x_t, or gives something of another
            shape.
    """
    sampler = DDIM(25) if sampler is None else sampler
    device = module_device(denoiser)
    schedule: Any = sampler.respace(denoiser.schedule)
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"a sampler's respace gives a schedule, as denoiser.schedule.respace does, that of "
            f"{type(sampler).__name__} gave {type(schedule).__name__}"
        )
    streams = NoiseStreams(seeds, denoiser.shape, device)
    x_t = streams.draw()
    if x_T is not None:
        x_t = x_T.to(x_t).clone()
    finite = FiniteSteps(seeds)
    networks = Networks(denoiser, guide)
    check_schedule(networks, denoiser.schedule)
    dependence = Dependence(networks, device)
    guides_keep: dict[object, Any] = {}
    memory = None
    for number, index in enumerate(reversed(range(len(schedule)))):
        timestep = int(schedule.timesteps[index])
        timesteps = torch.full((len(x_t),), timestep, device=device)
        state = State(x_t, timesteps, denoiser, seeds=seeds, number=number, memory=guides_keep)
        noise = streams.draw() if sampler.stochastic else None
        dependence.begin_step(number)
        with networks.evaluating(), autocast(precision, device):
            written = x_t._version
            update = stepper(sampler, schedule, index, state, guide, noise, memory)
        dependence.end_step()
        _check_update(update, x_t, guide if isinstance(guide, StepGuide) else sampler)
        if x_t._version != written:
            raise ValueError(
                f"{type(guide).__name__} or {type(sampler).__name__} overwrote x_t; let it compute "
                "with a clone"
            )
        finite.add(timestep, state.known_prediction, update)
        if index == 0:
            finite.check()
        yield Step(seeds, number, timestep, x_t, update.x_0, update.gradient, update.x)
        x_t, memory = update.x, update.memory


def sample(
    denoiser: Denoiser,
    seeds: int | Sequence[int],
    guide: AnyGuide | None = None,
    sampler: Sampler | None = None,
    *,
    batch: int = 128,
    x_T: Tensor | None = None,  # noqa: N803
    progress: bool | Progress = False,
    on_step: Callable[[Step], None] | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    stepper: Stepper = plain_step,
) -> Tensor:
    """Generate one image per seed.

    Networks compute in evaluation mode, whatever mode they are left in, and find theirs again.

    Args:
        denoiser: what is sampled from.
        seeds: one per image, each from 0 to 2^32 - 1: a sequence, or (N,) integers of an array or
            tensor; a number n stands for 0, 1, ..., n - 1.
            An image depends on its own seed alone (and its target), up to rounding.
        guide: steers the samples; its targets run parallel to ``seeds``, unless one stands
            for all.
        sampler: ``DDIM(25)`` by default.
        batch: images per network call.
        x_T: (N, C, H, W), the noise to begin with, instead of each seed's own.
        progress: True shows a bar; a function is told how many images are finished.
        on_step: called after every step of every batch with what happened in it.
        device: where to compute; the denoiser and the guide's model are moved there and stay.
            By default it is where the denoiser is.
        precision: in which networks compute, ``"fp32"`` or, where the device has it,
            ``"bf16"``; the steps themselves are float32.
        stepper: how steps are computed, :func:`ppap.diffusion.stepping.plain_step` or one that
            agrees with it up to rounding.

    Returns:
        (N, C, H, W) float32 images in [-1, 1] on the CPU, decoded if the denoiser's are latents.

    Raises:
        NoiseLevelsError: if the guide's model is made for another noise schedule.
        NonFiniteError: if a sample is not finite, naming the step from which it is not.
        PrecisionError: for bfloat16 on a device without instructions for it.
        TypeError: if ``seeds`` is neither a number nor a sequence of numbers, or anything is none
            of what it is to be.
        ValueError: if the guide's targets, the denoiser's conditions or ``x_T`` are for
            another number of images than there are seeds, or a batch is below 1.
    """
    check_arguments(denoiser, guide, sampler)
    sampler = DDIM(25) if sampler is None else sampler
    tell_of_clipped_latents(denoiser, guide, sampler)
    seeds = seed_list(seeds)
    check_whole("batch", batch)
    _check_counts(denoiser, seeds, guide, x_T)
    if device is not None:
        denoiser.to(device)
        if guide is not None and hasattr(guide, "to"):
            guide.to(device)
    check_precision(precision, module_device(denoiser))
    images = []
    with reporting(progress, len(seeds), "sample", "images") as done:
        for start in range(0, len(seeds), batch):
            rows = slice(start, start + batch)
            steps = trajectory(
                denoiser.rows(rows),
                seeds[rows],
                None if guide is None else guide.rows(rows),
                sampler,
                x_T=None if x_T is None else x_T[rows],
                precision=precision,
                stepper=stepper,
            )
            last = deque(_observed(steps, on_step), maxlen=1).pop()
            with torch.no_grad(), evaluating(denoiser):
                decoded = denoiser.decode(last.x)
                check_finite(decoded, f"the decoded image (seeds from {seeds[start]} on)")
                images.append(decoded.clamp(-1, 1).float().cpu())
            done(len(last.x))
    return joined(images, denoiser)


def joined(parts: Sequence[Tensor], denoiser: Denoiser) -> Tensor:
    """(N, C, H, W) images in one tensor, float32; of no parts none, of the denoiser's shape."""
    if parts:
        return torch.cat(list(parts))
    return torch.empty(0, *denoiser.image_shape(), dtype=torch.float32)


def _check_update(update: Any, x_t: Tensor, maker: object) -> None:
    """Refuse what a sampler or a method of the caller's gives in place of an update of x_t."""
    kind = type(maker).__name__
    if not isinstance(update, Update):
        raise TypeError(
            f"a step gives a ppap.diffusion.solver.Update, that of {kind} gave "
            f"{type(update).__name__}"
        )
    if update.x.shape != x_t.shape:
        raise ValueError(
            f"a step gives images like x_t, {tuple(x_t.shape)}, that of {kind} gave "
            f"{tuple(update.x.shape)}"
        )


def _observed(steps: Iterator[Step], on_step: Callable[[Step], None] | None) -> Iterator[Step]:
    for step in steps:
        if on_step is not None:
            on_step(step)
        yield step


def seed_list(seeds: int | Sequence[int]) -> Sequence[int]:
    """The seeds that a number stands for, or a sequence, which (N,) integers of an array are too.

    Raises:
        TypeError: if it is neither.
        ValueError: for a negative number.
    """
    if isinstance(seeds, Sequence):
        return seeds
    given: Any = seeds
    if isinstance(given, np.ndarray | Tensor):
        given = given.tolist()  # of a scalar a number
    if isinstance(given, list) and all(type(seed) is int for seed in given):
        return given
    try:
        check_whole("the number of seeds", given, 0)
    except TypeError:
        raise TypeError(f"seeds are a number or a sequence of integers, got {seeds!r}") from None
    return range(given)


def _check_counts(
    denoiser: Denoiser,
    seeds: Sequence[int],
    guide: AnyGuide | None,
    x_T: Tensor | None,  # noqa: N803
) -> None:
    count = len(seeds)
    if denoiser.condition_count not in (None, count):
        raise ValueError(f"{count} seeds, but conditions for {denoiser.condition_count} images")
    if guide is not None and guide.target_count not in (None, count):
        raise ValueError(
            f"{count} seeds need as many targets, or one for all; the guide has "
            f"{guide.target_count} (a single map or embedding is a target of one row, (1, ...))"
        )
    if x_T is not None and not isinstance(x_T, Tensor):
        raise TypeError(f"x_T is a tensor (N, C, H, W), got {type(x_T).__name__}")
    if x_T is not None and x_T.shape != (count, *denoiser.shape):
        raise ValueError(
            f"x_T must be {(count, *denoiser.shape)} for {count} seeds, got {tuple(x_T.shape)}"
        )
    if x_T is not None:
        check_finite(x_T, "the noise x_T")
