"""The guided step that is actually run: merged, folded, compiled, overlapped.

The plain path (:func:`ppap.diffusion.stepping.plain_step`) says what a guided step computes. This
module computes the same, up to rounding, from static shapes and static buffers:

* An expert is merged into the predictor's weights once per switch, into buffers of this module's
  own: nothing is ever written into the predictor, so there is nothing to restore.
* Batch norms of the predictor are folded into the convolutions before them, once per switch.
* The gradient in x_t is one traced graph of forward and backward pass, in which no weight has a
  gradient. Weights are its inputs, so a switch changes values and compiles nothing.
* On a CPU graphs are compiled ahead of time by inductor, the denoiser's with frozen weights, and
  kept on disk: another process loads them in milliseconds. On a GPU the whole step is compiled
  and captured in one CUDA graph, in which denoiser and gradient run on streams of their own, for
  neither needs the other's result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppap.compute.compiler import can_compile, just_in_time
from ppap.compute.options import check_whole
from ppap.compute.packages import cache_folder, package
from ppap.compute.precision import Precision, autocast, check_precision
from ppap.compute.tracing import Traced
from ppap.diffusion.denoiser import Denoiser, Prediction, module_device
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.diffusion.stepping import AnyGuide, StepGuide, gradient_of, plain_step
from ppap.fast.gradients import Gradients, Term
from ppap.fast.graphs import StepGraphs, can_capture
from ppap.fast.inner import InnerGuide
from ppap.fast.prediction import CompiledDenoiser
from ppap.fast.update import fused_step
from ppap.guidance.guides import targets_for
from ppap.guidance.scale import is_zero, scale_at, scaled
from ppap.guidance.wrappers import is_around, with_inner

__all__ = ["FastPath"]

Ready = list[tuple[Term, Tensor]]


@dataclass(frozen=True, eq=False)
class Images:
    """A batch, and as many images as graphs are made for.

    Attributes:
        x_t: (B, C, H, W).
        timestep: of all of them.
        filled: (batch, C, H, W), the last image repeated.
        timesteps: (batch,).
    """

    x_t: Tensor
    timestep: int
    filled: Tensor
    timesteps: Tensor


class FastPath:
    """Runs guided steps of one denoiser, whatever the guide.

    Guides over an :class:`ppap.experts.bank.ExpertBank`, a predictor or any other module are
    compiled, alone, in sums and within the wrappers of :mod:`ppap.guidance.wrappers`; any other
    guide is called as it is, and any sampler but DDIM and DDPM
    steps by its own code; a guide that makes whole steps makes them on the plain path. A graph is
    compiled for each batch size, model and task that it meets, and compared with the network
    once; what cannot be traced, or gives another result, is run as it is. Weights that change
    meanwhile are noticed. Batches smaller than ``batch`` are filled up.

    Args:
        denoiser: what is sampled from.
        batch: images per call.
        compile: whether graphs go through inductor; without it they are merged, folded and
            traced only.
        cache: folder of compiled graphs (CPU); :func:`cache_folder` by default.
        precision: ``"bf16"`` computes convolutions and products of denoiser and guides in
            bfloat16 where the device has it; norms, attention between few tokens, likelihoods and
            the steps themselves stay float32. A denoiser's graph is then held to 5 % of its
            float32 prediction, a guide's to what the plain path errs in bfloat16.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
        ValueError: for a batch below 1 or an unknown precision.

    Attributes:
        compilations: how many graphs were compiled so far, those found on disk aside.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        batch: int,
        compile: bool = True,
        cache: Path | None = None,
        precision: Precision = "fp32",
    ) -> None:
        check_whole("batch", batch)
        check_precision(precision, module_device(denoiser))
        self.precision: Precision = precision
        self.denoiser = denoiser
        self.batch = batch
        self.compile = compile and can_compile()
        self.cache = cache or cache_folder()
        self.compilations = 0
        # Its buffers hold the weights of one step; a guide of one's own may sample within its step.
        self._lock = threading.RLock()
        self._predict = CompiledDenoiser(denoiser, self._compiled, precision)
        self._gradients = Gradients(self._compiled, precision)
        self._graphs = StepGraphs(self._predict)

    @torch.no_grad()
    def step(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        state: State,
        guide: AnyGuide | None,
        noise: Tensor | None,
        memory: Any = None,
    ) -> Update:
        """The next step of a batch; see :class:`ppap.diffusion.stepping.Stepper`.

        Args:
            sampler: DDIM and DDPM run as one fused update, others by their own step.
            schedule: the respaced schedule.
            index: position in it.
            state: of at most ``batch`` images.
            guide: with one target per image, or one for all.
            noise: (B, C, H, W) standard normal, for samplers that need it.
            memory: of the sampler.

        Raises:
            ValueError: for more images than ``batch``, or another denoiser's.
        """
        with self._lock, autocast(self.precision, state.x_t.device):
            return self._step(sampler, schedule, index, state, guide, noise, memory)

    def _step(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        state: State,
        guide: AnyGuide | None,
        noise: Tensor | None,
        memory: Any,
    ) -> Update:
        x_t, count = state.x_t, len(state.x_t)
        if count > self.batch:
            raise ValueError(f"this fast path takes up to {self.batch} images, got {count}")
        if state.denoiser is not self.denoiser:
            raise ValueError("this fast path is of another denoiser; make one of this denoiser")
        if isinstance(guide, StepGuide):
            return plain_step(sampler, schedule, index, state, guide, noise, memory)
        images = self._images(x_t, int(schedule.timesteps[index]))
        begins = state.number == 0  # weights are looked at thoroughly once a trajectory
        if self._predict.refresh(thorough=begins):
            self._graphs.clear()
        ready: Ready | None = [] if guide is None else self._ready(guide, images, begins)
        if ready is None:
            assert guide is not None
            state.share(self._prediction(images))
            total = gradient_of(self._around(guide, state), state)
            prediction = state.prediction()
            return fused_step(sampler, schedule, index, x_t, prediction, total, noise, memory)
        terms, targets = [term for term, _ in ready], [aim for _, aim in ready]
        if x_t.is_cuda and can_capture(sampler, terms):
            fill = None if noise is None else _fill(noise, self.batch)
            whole = self._graphs(
                sampler, schedule, index, images.filled, images.timesteps, terms, targets, fill
            )
            total = None if whole.gradient is None else whole.gradient[:count]
            return Update(whole.x[:count], whole.x_0[:count], total)
        total = self._gradient(ready, state, images)
        prediction = self._prediction(images)
        state.share(prediction)
        return fused_step(sampler, schedule, index, x_t, prediction, total, noise, memory)

    def _images(self, x_t: Tensor, timestep: int) -> Images:
        timesteps = torch.full((self.batch,), timestep, device=x_t.device)
        return Images(x_t, timestep, _fill(x_t, self.batch), timesteps)

    def _ready(self, guide: Guide, images: Images, begins: bool) -> Ready | None:
        """What a guide sums, and the batch's targets of each; None if it must be run as it is."""
        terms = self._gradients.terms(guide, images.timestep, thorough=begins)
        if terms is None:
            return None
        ready = []
        for gradient, part in terms:
            aim = _fill(targets_for(part.targets, images.x_t), self.batch)
            if not gradient.prepare(images.filled, images.timesteps, aim, begins):
                return None
            ready.append(((gradient, part), aim))
        return ready

    def _gradient(self, ready: Ready, state: State, images: Images) -> Tensor | None:
        """The sum of scaled gradients of the batch's own images; None of nothing."""
        count, total = len(images.x_t), None
        for (gradient, part), aim in ready:
            if is_zero(scale_at(part.scale, state)):
                continue
            of_all = gradient(images.filled, images.timesteps, aim)
            found = scaled(part.scale, of_all[:count], state)
            total = found if total is None else total + found
        return total

    def _around(self, guide: Guide, state: State) -> Guide:
        """A guide around others with these by their graphs; any other as it is."""
        if not is_around(guide):
            return guide
        key = (self, guide)  # a guide that remembers something must be the same at the next step
        if key not in state.memory:
            state.memory[key] = with_inner(guide, lambda inner: InnerGuide(inner, self._of_inner))
        found: Guide = state.memory[key]
        return found

    def _of_inner(self, guide: Guide, state: State, begins: bool) -> Tensor | None:
        images = self._images(state.x_t, int(state.timesteps[0]))
        ready = self._ready(guide, images, begins)
        return gradient_of(guide, state) if ready is None else self._gradient(ready, state, images)

    def _prediction(self, images: Images) -> Prediction:
        """Of the batch's own images alone."""
        count, found = len(images.x_t), self._predict(images.filled, images.timesteps)
        fraction = found.variance_fraction
        return Prediction(found.epsilon[:count], None if fraction is None else fraction[:count])

    def _compiled(
        self, module: Traced, arguments: tuple[Any, ...], freezing: bool = False
    ) -> Callable[..., Any]:
        if not self.compile:
            return module
        if any(isinstance(a, Tensor) and a.is_cuda for a in arguments):
            self.compilations += 1
            return just_in_time(module)
        loaded, missing = package(module, arguments, self.cache, freezing)
        self.compilations += missing
        return loaded


def _fill(x: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...): the last row repeated, in the one layout that graphs read.

    A compiled graph takes the strides of its example for those of every input, unasked. One target
    for all has strides of 0, and noise of the caller's may be channels-last.
    """
    if len(x) < count:
        x = torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])
    return x.contiguous()
