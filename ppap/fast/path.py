"""The guided step that is actually run: merged, folded, compiled, overlapped.

The plain path (:func:`ppap.diffusion.solver.plain_step`) says what a guided step computes. This
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

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppap.compute.compiler import can_compile
from ppap.compute.packages import cache_folder, package
from ppap.compute.tracing import Traced, laid_out, state_of
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.fast.gradients import Gradient, total_gradient
from ppap.fast.graphs import CapturedFunction
from ppap.fast.update import fused_step, fused_update, image_ahead, step_coefficients
from ppap.fast.views import view_of
from ppap.guidance.guides import LikelihoodGuide, SumOfGuides
from ppap.tasks.protocol import GuidanceTask

__all__ = ["FastPath"]

Compiled = Callable[..., Any]


class FastPath:
    """Runs guided steps of one denoiser, whatever the guide.

    Guides over an :class:`ppap.experts.bank.ExpertBank`, a predictor or any other module, and sums
    of such, are compiled; any other guide is called as it is. A graph is compiled for each batch
    size, model and task that it meets; batches smaller than ``batch`` are filled up to it.

    Args:
        denoiser: what is sampled from.
        batch: images per call.
        compile: whether graphs go through inductor; without it they are merged, folded and
            traced only.
        cache: folder of compiled graphs (CPU); :func:`cache_folder` by default.

    Attributes:
        compilations: how many graphs were compiled so far, those found on disk aside.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        batch: int,
        compile: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.batch = batch
        self.compile = compile and can_compile()
        self.cache = cache or cache_folder()
        self.compilations = 0
        self._predict: dict[torch.device, Compiled] = {}
        self._gradients: dict[tuple[int, GuidanceTask], Gradient] = {}
        self._captured: dict[tuple[object, ...], CapturedFunction] = {}

    @torch.no_grad()
    def step(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        state: State,
        guide: Guide | None,
        noise: Tensor | None,
        memory: Any = None,
    ) -> Update:
        """The next step of a batch; see :class:`ppap.diffusion.solver.Stepper`.

        Args:
            sampler: DDIM and DDPM run as one fused update, others by their own step.
            schedule: the respaced schedule.
            index: position in it.
            state: of at most ``batch`` images.
            guide: with one target per image, or one for all.
            noise: (B, C, H, W) standard normal, for samplers that need it.
            memory: of the sampler.

        Raises:
            ValueError: for more images than ``batch``.
        """
        x_t = state.x_t
        count = len(x_t)
        if count > self.batch:
            raise ValueError(f"this fast path takes up to {self.batch} images, got {count}")
        timestep = int(schedule.timesteps[index])
        timesteps = torch.full((self.batch,), timestep, device=x_t.device)
        terms = [] if guide is None else self._terms(guide, timestep)
        filled = _fill(x_t, self.batch)
        targets = [_fill(part.targets.to(x_t.device), self.batch) for _, part in terms or ()]
        if x_t.is_cuda and terms is not None and isinstance(sampler, DDIM | DDPM):
            fill = None if noise is None else _fill(noise, self.batch)
            whole = self._graphed(sampler, schedule, index, filled, timesteps, terms, targets, fill)
            gradient = None if whole.gradient is None else whole.gradient[:count]
            return Update(whole.x[:count], whole.x_0[:count], gradient)
        prediction = self._prediction(filled, timesteps)
        fraction = prediction.variance_fraction
        kept = Prediction(
            prediction.epsilon[:count], None if fraction is None else fraction[:count]
        )
        gradient = None
        if terms is None:
            assert guide is not None
            state.share(kept)
            gradient = guide(state)
        elif terms:
            gradient = total_gradient(terms, targets, filled, timesteps)[:count]
        return fused_step(sampler, schedule, index, x_t, kept, gradient, noise, memory)

    def _prediction(self, x_t: Tensor, timesteps: Tensor) -> Prediction:
        if x_t.device not in self._predict:
            denoiser = self.denoiser
            state = state_of(denoiser)
            names = list(state)
            weights = [laid_out(value.detach().to(x_t.device)) for value in state.values()]

            def run(weights: list[Tensor], x: Tensor, t: Tensor) -> list[Tensor]:
                found = functional_call(denoiser, dict(zip(names, weights, strict=True)), (x, t))
                fraction = found.variance_fraction
                return [found.epsilon] if fraction is None else [found.epsilon, fraction]

            traced = Traced(run, (weights, x_t, timesteps), frozen=True)
            self._predict[x_t.device] = self._compiled(traced, (x_t, timesteps), freezing=True)
        return Prediction(*self._predict[x_t.device](x_t, timesteps))

    def _terms(self, guide: Guide, timestep: int) -> list[tuple[Gradient, LikelihoodGuide]] | None:
        """The compiled gradients that a guide sums, switched to a timestep; None if it has none."""
        parts: Iterable[Guide] = guide.parts if isinstance(guide, SumOfGuides) else (guide,)
        terms = []
        for part in parts:
            if not isinstance(part, LikelihoodGuide) or not isinstance(part.scale, int | float):
                return None
            key = id(part.model), part.task
            if key not in self._gradients:
                view = view_of(part.model)
                if view is None:
                    return None
                self._gradients[key] = Gradient(view, part.task, self._compiled)
            self._gradients[key].view.switch(timestep)
            terms.append((self._gradients[key], part))
        return terms

    def _compiled(
        self, module: nn.Module, arguments: tuple[Any, ...], freezing: bool = False
    ) -> Compiled:
        if not self.compile:
            return module
        if any(isinstance(a, Tensor) and a.is_cuda for a in arguments):
            self.compilations += 1
            compiled: Compiled = torch.compile(module, fullgraph=True, dynamic=False)
            return compiled
        compiled, missing = package(module, arguments, self.cache, freezing)
        self.compilations += missing
        return compiled

    def _graphed(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        x_t: Tensor,
        timesteps: Tensor,
        terms: list[tuple[Gradient, LikelihoodGuide]],
        targets: list[Tensor],
        noise: Tensor | None,
    ) -> Update:
        """The whole step as one CUDA graph: two streams until the update."""
        coefficients = step_coefficients(sampler, schedule, index, self.batch, x_t.device)
        key = (
            repr(sampler), noise is None, x_t.shape,
            tuple((id(term), guide.scale) for term, guide in terms),
            tuple((target.shape, target.dtype) for target in targets),
        )  # fmt: skip
        assert coefficients is not None
        inputs = [x_t, timesteps, *targets, *coefficients.values()]
        inputs += [] if noise is None else [noise]
        if key not in self._captured:
            names, side = list(coefficients), torch.cuda.Stream()  # type: ignore[no-untyped-call]

            def step(x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
                aims, rest = rest[: len(targets)], rest[len(targets) :]
                found = dict(zip(names, rest, strict=False))
                fresh = rest[len(names)] if len(rest) > len(names) else None
                here = torch.cuda.current_stream()
                side.wait_stream(here)
                gradient = None
                with torch.cuda.stream(side):
                    if terms:
                        gradient = total_gradient(terms, list(aims), x, t)
                prediction = self._prediction(x, t)
                here.wait_stream(side)
                after = fused_update(sampler, found, x, prediction, gradient, fresh)
                image = image_ahead(sampler, found["signal"], x, prediction, gradient)
                return torch.stack([after, image] if gradient is None else [after, image, gradient])

            self._captured[key] = CapturedFunction(step, inputs)
        after, image, *gradients = self._captured[key](inputs)
        return Update(after, image, gradients[0] if gradients else None)


def _fill(x: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...): the last row repeated."""
    if len(x) == count:
        return x
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])
