"""Any scheduler of diffusers as a sampler here, if it steps through noise levels as DDPM does.

That is: discrete timesteps, a table ``alphas_cumprod``, samples of unit variance, and a model that
predicts epsilon, x_0 or v. Flow matching, consistency models and those that work on samples of
exploding variance (EDM, Euler, Heun) are refused. A guide's gradient enters as in this library's
own samplers (:mod:`ppap.diffusion.gradient_entry`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppap.compute.options import check_whole
from ppap.diffusion.ddpm import FixedVariance, ancestral_variance
from ppap.diffusion.denoiser import Denoiser, Prediction, Target
from ppap.diffusion.gradient_entry import guided_prediction
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Index, Update, gather

__all__ = [
    "TARGETS",
    "DiffusersSampler",
    "UnknownSchedulerError",
    "check_family",
    "check_levels",
    "check_network",
    "check_scheduler",
    "guided_scheduler_step",
    "predicted_noise",
    "respaced_schedule",
    "training_schedule",
]

TARGETS: dict[str, Target] = {"epsilon": "epsilon", "sample": "x_0", "v_prediction": "v"}
"""What a scheduler's network predicts, as denoisers name it."""
CONSISTENCY = ("LCM", "TCD", "Consistency", "CMStochastic")
OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
STEP = ("model_output", "timestep", "sample")
"""What the step of a scheduler is given."""
FAMILY = "take one such as DDPM-, DDIM- or DPMSolverMultistepScheduler"
VARIANCES: dict[str, FixedVariance] = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "large",  # not looked at: the model's own is
}


class UnknownSchedulerError(ValueError):
    """A scheduler of a family whose steps are not those of discrete diffusion."""


def check_family(scheduler: Any) -> None:
    """Refuse a scheduler whose network is no denoiser of discrete diffusion.

    Raises:
        UnknownSchedulerError: without a table of noise levels that timesteps index, for flow
            matching, consistency models, networks that are shown noise levels for timesteps, and
            schedules of which the last level holds no signal.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    kind = config.get("prediction_type", "epsilon")
    tables = (getattr(scheduler, table, None) for table in ("alphas_cumprod", "betas"))
    wrong = ""
    if not all(isinstance(table, Tensor) for table in tables):
        wrong = "has no table alphas_cumprod of discrete noise levels"
    elif name.startswith(CONSISTENCY):
        wrong = "is for consistency models"
    elif config.get("use_flow_sigmas"):
        wrong = "is for flow matching"
    elif config.get("timestep_type") == "continuous":
        wrong = "shows the network noise levels in place of timesteps"
    elif kind not in TARGETS:
        wrong = f"is for models that predict {kind!r}"
    if wrong:
        raise UnknownSchedulerError(f"{name} {wrong}; {FAMILY}")
    if float(scheduler.alphas_cumprod[-1]) <= 0:
        raise UnknownSchedulerError(
            f"{name} ends in noise without any signal, from which no noise can be told; make it "
            "with rescale_betas_zero_snr=False"
        )


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that this module cannot guide.

    Raises:
        UnknownSchedulerError: for another family, an option that moves its noise levels away from
            its timesteps, or a step that takes more than what a network gave, a timestep and
            images.
    """
    check_family(scheduler)
    config, wrong = scheduler.config, ""
    if float(scheduler.init_noise_sigma) != 1:
        wrong = "works on samples of exploding variance"
    elif config.get("thresholding"):
        wrong = "thresholds predicted images, which would undo guidance"
    elif option := next((option for option in OTHER_SIGMAS if config.get(option)), None):
        wrong = f"has {option}, whose noise levels are not those of its timesteps"
    elif len(needs := _needed(scheduler.step)) > len(STEP):
        wrong = f"makes steps of {', '.join(needs)}, not of {', '.join(STEP)} alone"
    if wrong:
        raise UnknownSchedulerError(f"{type(scheduler).__name__} {wrong}; {FAMILY}")


def _needed(step: Callable[..., Any]) -> tuple[str, ...]:
    """What a scheduler's step has to be given."""
    options = inspect.signature(step).parameters.values()
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(o.name for o in options if o.default is o.empty and o.kind not in any_number)


def check_levels(scheduler: Any, schedule: Schedule) -> None:
    """Refuse a scheduler of other noise levels than a denoiser's.

    Args:
        scheduler: of the discrete diffusion family.
        schedule: the denoiser's, in full.

    Raises:
        ValueError: then.
    """
    own = training_schedule(scheduler).alphas_cumprod
    same = len(own) == len(schedule) and schedule.is_whole
    if not same or not np.allclose(own, schedule.alphas_cumprod, rtol=1e-3):
        raise ValueError(
            "the scheduler's noise levels are not those that the denoiser was trained on; "
            "make it from the configuration that came with the denoiser"
        )


def check_network(scheduler: Any, denoiser: Denoiser) -> None:
    """Refuse a denoiser that is not of the network whose output a scheduler is given.

    Raises:
        ValueError: for other noise levels, or another target.
    """
    check_levels(scheduler, denoiser.schedule)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if denoiser.target != TARGETS[kind]:
        raise ValueError(
            f"the scheduler's network predicts {kind!r}, the denoiser's {denoiser.target!r}; "
            f"make it with target={TARGETS[kind]!r}"
        )


def training_schedule(scheduler: Any) -> Schedule:
    """The full schedule that a scheduler's timesteps index."""
    return Schedule(scheduler.alphas_cumprod.double().cpu().numpy())


def respaced_schedule(scheduler: Any) -> Schedule:
    """The timesteps that a scheduler visits, after its ``set_timesteps``.

    Raises:
        UnknownSchedulerError: unless they are whole numbers, each visited once, from high to low.
    """
    timesteps = np.asarray(scheduler.timesteps.tolist())
    kept = timesteps[::-1].astype(np.int64)
    if (kept != timesteps[::-1]).any() or (np.diff(kept) <= 0).any():
        raise UnknownSchedulerError(
            f"{type(scheduler).__name__} visits timesteps that are no whole numbers or repeat "
            "themselves; set timestep_spacing, or take another scheduler"
        )
    return Schedule(training_schedule(scheduler).alphas_cumprod[kept], kept)


def predicted_noise(scheduler: Any, output: Tensor, timestep: int, x_t: Tensor) -> Prediction:
    """What a model's output of the scheduler's kind says of the noise.

    Args:
        scheduler: names the kind.
        output: (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        timestep: of the whole batch.
        x_t: (B, C, H, W).
    """
    fraction = None
    if output.shape[1] == 2 * x_t.shape[1]:
        output, fraction = output.chunk(2, dim=1)
    alpha, sigma = _alpha_sigma(scheduler, timestep, x_t)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        output = (x_t - alpha * output) / sigma
    elif kind == "v_prediction":
        output = alpha * output + sigma * x_t
    return Prediction(output, fraction)


def guided_scheduler_step(
    scheduler: Any,
    prediction: Prediction,
    timestep: int,
    x_t: Tensor,
    gradient: Tensor,
    *args: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """A scheduler's own step, guided; an image whose gradient is 0 is stepped as without a guide.

    Args:
        scheduler: after ``set_timesteps``.
        prediction: the denoiser's for ``x_t``.
        timestep: of the whole batch.
        x_t: (B, C, H, W).
        gradient: (B, C, H, W), scaled.
        args: further ones of the scheduler's step.
        options: likewise, by name.

    Returns:
        x at the next timestep, and the image that the step went towards, (B, C, H, W) each.
    """
    full, at = training_schedule(scheduler), gather(timestep, x_t)
    options |= {"return_dict": False}
    if type(scheduler).__name__.startswith("DDPM"):
        output = model_output(scheduler, prediction, timestep, x_t)
        x, x_0 = scheduler.step(output, timestep, x_t, *args, **options)
        short = respaced_schedule(scheduler)
        here = gather(int(np.searchsorted(short.timesteps, timestep)), x_t)
        variance, _ = ancestral_variance(
            short, here, _learned_fraction(scheduler, prediction), _fixed_variance(scheduler)
        )
        return x + variance * gradient, x_0
    clipping = _clipping(scheduler)
    x_0, epsilon = guided_prediction(full, at, x_t, prediction, gradient, *clipping)
    shifted = Prediction(epsilon, prediction.variance_fraction)
    output = model_output(scheduler, shifted, timestep, x_t)
    if not clipping[0]:
        return scheduler.step(output, timestep, x_t, *args, **options)[0], x_0
    idle = (gradient == 0).flatten(1).all(1)
    own = x_t
    if bool(idle.any()):  # their noise is that of before the clipping, which no shift of 0 gives
        own = _unguided(scheduler, prediction, timestep, x_t, *args, **options)
    scheduler = copy.copy(scheduler)  # clips before guidance, not after it: see guided_prediction
    scheduler.register_to_config(clip_sample=False)
    x = scheduler.step(output, timestep, x_t, *args, **options)[0]
    return torch.where(idle[:, None, None, None], own, x), x_0


def _unguided(
    scheduler: Any, prediction: Prediction, timestep: int, x_t: Tensor, *args: Any, **options: Any
) -> Tensor:
    """x by a scheduler's own step, which is left to be made again, with the same random numbers."""
    scheduler, args, options = copy.deepcopy((scheduler, args, options))
    with torch.random.fork_rng([x_t.device] if x_t.is_cuda else []):
        output = model_output(scheduler, prediction, timestep, x_t)
        x: Tensor = scheduler.step(output, timestep, x_t, *args, **options)[0]
    return x


def model_output(scheduler: Any, prediction: Prediction, timestep: int, x_t: Tensor) -> Tensor:
    """The inverse of :func:`predicted_noise`."""
    alpha, sigma = _alpha_sigma(scheduler, timestep, x_t)
    output, kind = prediction.epsilon, scheduler.config.prediction_type
    if kind == "sample":
        output = (x_t - sigma * output) / alpha
    elif kind == "v_prediction":
        output = (output - sigma * x_t) / alpha
    fraction = _learned_fraction(scheduler, prediction)
    return output if fraction is None else torch.cat([output, fraction], dim=1)


@dataclass(frozen=True, eq=False)
class DiffusersSampler:
    """A scheduler of diffusers as a sampler.

    Attributes:
        scheduler: e.g. ``UniPCMultistepScheduler.from_config(pipeline.scheduler.config)``; it is
            copied for each batch and not changed.
        steps: how many timesteps it is to visit.

    Raises:
        UnknownSchedulerError: see :func:`check_scheduler`.
    """

    scheduler: Any
    steps: int

    def __post_init__(self) -> None:
        check_scheduler(self.scheduler)
        check_whole("steps", self.steps)

    @property
    def spacing(self) -> str:
        """Names the scheduler and its number of steps."""
        return f"{type(self.scheduler).__name__}{self.steps}"

    @property
    def stochastic(self) -> bool:
        return "generator" in inspect.signature(self.scheduler.step).parameters

    def respace(self, schedule: Schedule) -> Schedule:
        """The timesteps that the scheduler visits.

        Raises:
            ValueError: if the scheduler was made for other noise levels than the denoiser's.
        """
        check_levels(self.scheduler, schedule)
        kept = respaced_schedule(self._fresh("cpu")).timesteps
        return Schedule(schedule.alphas_cumprod[kept], kept)

    def step(
        self,
        schedule: Schedule,
        index: Index,
        x_t: Tensor,
        prediction: Prediction,
        gradient: Tensor | None = None,
        noise: Tensor | None = None,
        memory: Any = None,
    ) -> Update:
        """The scheduler's step; see :meth:`ppap.diffusion.solver.Sampler.step`.

        The memory is the batch's own copy of the scheduler.

        Raises:
            TypeError: for a batch of mixed timesteps.
        """
        if not isinstance(index, int):
            raise TypeError("a scheduler of diffusers takes batches of one timestep")
        # A scheduler changes as it steps; the one that came in may be wanted for another try.
        scheduler = self._fresh(x_t.device) if memory is None else copy.deepcopy(memory)
        timestep = int(schedule.timesteps[index])
        options: dict[str, Any] = {}
        if self.stochastic and noise is not None:
            options["generator"] = _generators(noise)
        if gradient is not None:
            x, x_0 = guided_scheduler_step(
                scheduler, prediction, timestep, x_t, gradient, **options
            )
            return Update(x, x_0, gradient, scheduler)
        output = model_output(scheduler, prediction, timestep, x_t)
        (x, *_) = scheduler.step(output, timestep, x_t, return_dict=False, **options)
        at = gather(timestep, x_t)
        full = training_schedule(scheduler)
        x_0, _ = guided_prediction(full, at, x_t, prediction, None, *_clipping(scheduler))
        return Update(x, x_0, None, scheduler)

    def _fresh(self, device: torch.device | str) -> Any:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.steps, device=device)
        return scheduler


def _alpha_sigma(scheduler: Any, timestep: int, x_t: Tensor) -> tuple[Tensor, Tensor]:
    level = scheduler.alphas_cumprod[timestep].to(x_t.device).double()
    return level.sqrt().to(x_t.dtype), (1 - level).sqrt().to(x_t.dtype)


def _clipping(scheduler: Any) -> tuple[bool, float]:
    """Whether predicted images are clipped, and to which bound."""
    config = scheduler.config
    return bool(config.get("clip_sample", False)), config.get("clip_sample_range", 1)


def _learned_fraction(scheduler: Any, prediction: Prediction) -> Tensor | None:
    """The variance that the network has learned; None where the scheduler looks at its own."""
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    return prediction.variance_fraction if learned else None


def _fixed_variance(scheduler: Any) -> FixedVariance:
    kind = scheduler.config.variance_type
    if kind not in VARIANCES:
        raise UnknownSchedulerError(f"variance_type {kind!r}; known are {', '.join(VARIANCES)}")
    return VARIANCES[kind]


def _generators(noise: Tensor) -> list[torch.Generator]:
    """One generator per sample, seeded by its own noise, so that seeds alone decide."""
    seeds = noise.flatten(1)[:, 0].float().cpu().contiguous().view(torch.int32).tolist()
    return [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
