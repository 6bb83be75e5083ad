"""A guide inside diffusers' pipelines: its gradient enters at the scheduler.

Pipelines ask their scheduler for every step, so a scheduler that guides makes any of them guided:
``pipeline.scheduler = GuidedScheduler(pipeline.scheduler, bank.guide(207, scale=7.5))``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppap.compute.modules import Networks
from ppap.compute.precision import widened
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.diffusers_scheduler import (
    check_network,
    check_scheduler,
    guided_scheduler_step,
    predicted_noise,
    training_schedule,
)
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.noise_levels import check_schedule
from ppap.diffusion.stepping import check_gives_gradient, gradient_of
from ppap.files.images import check_finite
from ppap.guidance.scale import differentiable

__all__ = ["GuidedScheduler"]


class GuidedScheduler:
    """A scheduler of diffusers whose steps are guided; in all else it is the one it wraps.

    Under DDPM the gradient moves the mean, under DDIM, DPM-Solver and others the predicted noise,
    so that a pipeline gives the images of this library's own guided sampling at the same noise.
    Where the pipeline is in half precision, guides and the steps that they guide are in float32.
    An image for which the guide gives no gradient, or one of 0, is stepped by the scheduler alone,
    which differs from a step of a tiny gradient where ``DDIMScheduler`` clips: it goes on with the
    noise before clipping, unless the pipeline is called with ``use_clipped_model_output=True``.

    Set ``pipeline.scheduler`` after the pipeline is made: ``DDIMPipeline`` would make a plain
    scheduler of the configuration of the one that it is given, without the guide, and so would
    ``from_config``.

    Args:
        scheduler: as a pipeline has it, of the discrete diffusion family.
        guide: its targets are for the pipeline's batch, or one is for all.
        denoiser: the pipeline's network as a denoiser, for guides that differentiate it or
            want latents decoded; others do without.

    Raises:
        StepGuideError: for a guide that makes whole steps.
        UnknownSchedulerError: for a scheduler of another family.
        TypeError: where another scheduler is made of its configuration.
        NoiseLevelsError: at a step, if the guide's model is made for another noise schedule.
        NonFiniteError: at a step, if the guide's gradient is not finite.
        ValueError: for a denoiser of other noise levels or another target than the scheduler's, and
            at a step, if the guide's targets are for another number of images.
    """

    def __init__(self, scheduler: Any, guide: Guide, denoiser: Denoiser | None = None) -> None:
        check_scheduler(scheduler)
        if denoiser is not None:
            check_network(scheduler, denoiser)
        check_gives_gradient(
            guide, "a pipeline's scheduler", "sample with ppap.sample and a DiffusersSampler"
        )
        self.scheduler = scheduler
        self.guide = guide
        self.denoiser = denoiser
        self._memory: dict[object, Any] = {}
        self._number = 0
        # Pipelines look at the signatures of these two to know what a scheduler takes.
        self.step = functools.wraps(scheduler.step)(functools.partial(self._step))
        self.set_timesteps = functools.wraps(scheduler.set_timesteps)(
            functools.partial(self._set_timesteps)
        )

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def __len__(self) -> int:
        return len(self.scheduler)

    @property
    def config(self) -> Mapping[str, Any]:
        """The wrapped scheduler's configuration, of which no other is made without a word."""
        found: Mapping[str, Any] = _guided_config()(self.scheduler.config)
        return found

    def _set_timesteps(self, *args: Any, **options: Any) -> None:
        """A trajectory begins: whatever guides remember is of another."""
        self._memory, self._number = {}, 0
        self.scheduler.set_timesteps(*args, **options)

    def _step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *args: Any,
        **options: Any,
    ) -> Any:
        if self.guide.target_count not in (None, len(sample)):
            raise ValueError(
                f"the pipeline draws {len(sample)} images, the guide has targets for "
                f"{self.guide.target_count}"
            )
        t = int(timestep)
        networks = Networks(self.guide)
        check_schedule(networks, training_schedule(self.scheduler))
        # A pipeline may be called in inference mode, in which nothing can be differentiated.
        with torch.inference_mode(False), torch.no_grad(), networks.evaluating():
            # In half precision small gradients vanish, and large ones overflow.
            x_t, output = (widened(differentiable(given)) for given in (sample, model_output))
            prediction = predicted_noise(self.scheduler, output, t, x_t)
            state = State(
                x_t,
                torch.full((len(x_t),), t, device=x_t.device),
                self.denoiser or _Absent(training_schedule(self.scheduler), x_t.shape),
                number=self._number,
                memory=self._memory,
            )
            state.share(prediction)
            gradient = gradient_of(self.guide, state)
        if gradient is not None:
            check_finite(gradient, f"at step {self._number} (timestep {t}) the guide's gradient")
        self._number += 1
        if gradient is None:
            return self.scheduler.step(model_output, timestep, sample, *args, **options)
        whole = options.pop("return_dict", True)
        x, x_0 = guided_scheduler_step(
            self.scheduler, prediction, t, x_t, gradient, *args, **options
        )
        x, x_0 = x.to(sample.dtype), x_0.to(sample.dtype)
        return _output(x, x_0) if whole else (x, x_0)


@functools.cache
def _guided_config() -> Any:
    from diffusers.configuration_utils import FrozenDict

    class GuidedConfig(FrozenDict):
        def get(self, key: str, default: Any = None) -> Any:
            if key == "_use_default_values":  # which from_config alone asks for
                raise TypeError(
                    "a scheduler that is made of a GuidedScheduler's configuration has no guide; "
                    "set pipeline.scheduler after the pipeline is made, and for another scheduler "
                    "guide that one: GuidedScheduler(Other.from_config(guided.scheduler.config), "
                    "guide)"
                )
            return super().get(key, default)

    return GuidedConfig


def _output(x: Tensor, x_0: Tensor) -> Any:
    from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

    return DDPMSchedulerOutput(prev_sample=x, pred_original_sample=x_0)


class _Absent(Denoiser):
    """A denoiser whose prediction is known and whose network is not."""

    def __init__(self, schedule: Any, shape: torch.Size) -> None:
        super().__init__(self._refuse, schedule, (shape[1], shape[2], shape[3]))

    @staticmethod
    def _refuse(x_t: Tensor, timesteps: Tensor) -> Tensor:
        raise ValueError(
            "this guide differentiates the denoiser; give GuidedScheduler the pipeline's denoiser"
        )
