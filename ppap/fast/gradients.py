"""Gradients of log-likelihoods in x_t as traced graphs in which no weight has a gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ppap.compute.agreement import SMALL_IN_HALF, SMALL_IN_TF32, agree, as_near
from ppap.compute.precision import (
    Precision,
    autocast,
    cast_to,
    full_float32,
    shortens_float32,
    without_autocast,
)
from ppap.compute.recent import Recent
from ppap.compute.tracing import Traced
from ppap.diffusion.guide import Guide
from ppap.fast.views import View, view_of
from ppap.files.checkpoints import one_line
from ppap.guidance.guides import (
    LikelihoodGuide,
    NoiseAwareModel,
    SumOfGuides,
    log_likelihood_of,
    shown,
)
from ppap.tasks.protocol import GuidanceTask

__all__ = ["Gradient", "Gradients", "Term"]

logger = logging.getLogger(__name__)

Compiled = Callable[..., Any]
Compiler = Callable[[Traced, tuple[Any, ...]], Compiled]

RUN_AS_IT_IS = "%s is run as it is: %s"
MOST = 32
"""Models and tasks whose graphs are kept, each with a copy of the model's weights."""


class Gradient:
    """The gradient in x_t of the log-likelihood under one model and task.

    Args:
        view: the model as a function of its weights.
        model: the model itself, which the graph is compared with.
        task: what its predictions mean.
        compiler: of graphs.
        precision: in which the model computes; the likelihood is computed in float32.

    Attributes:
        restless: whether the model changes with every call, so that no graph stands for it.
    """

    def __init__(
        self,
        view: View,
        model: NoiseAwareModel,
        task: GuidanceTask,
        compiler: Compiler,
        precision: Precision = "fp32",
    ) -> None:
        self.precision: Precision = precision
        self.view = view
        self.model = model
        self.task = task
        self.restless = False
        self._compiler = compiler
        self._compiled: dict[tuple[object, ...], Compiled | None] = {}
        self._like: Any = None

    def prepare(self, x_t: Tensor, timesteps: Tensor, targets: Tensor, begins: bool = True) -> bool:
        """Compile for inputs of these shapes; False if the model must be run as it is.

        That is so if it cannot be traced, or if the graph's result is another than its own.

        Args:
            x_t: (B, C, H, W).
            timesteps: (B,).
            targets: (B, ...).
            begins: whether targets are to be looked at: a graph takes whatever they are.

        Raises:
            ValueError: for targets that the task refuses.
        """
        key = self._key(x_t, targets)
        if key not in self._compiled:
            for older in [older for older in self._compiled if older[0] != key[0]]:
                del self._compiled[older]
            self._compiled[key] = self._graph(x_t, timesteps, targets)
        elif begins and self._like is not None:
            with torch.no_grad():
                self.task.log_likelihood(self._like, targets)
        return self._compiled[key] is not None

    def __call__(self, x_t: Tensor, timesteps: Tensor, targets: Tensor) -> Tensor:
        """(B, C, H, W) for inputs that were prepared for."""
        graph = self._compiled[self._key(x_t, targets)]
        assert graph is not None
        with without_autocast(x_t.device):
            (gradient,) = graph(self.view.weights(), x_t, timesteps, targets)
        assert isinstance(gradient, Tensor)
        return gradient

    def _key(self, x_t: Tensor, targets: Tensor) -> tuple[object, ...]:
        shapes = x_t.shape, x_t.dtype, x_t.device, targets.shape, targets.dtype
        return self.view.generation, cast_to(x_t.device), *shapes

    def _graph(self, x_t: Tensor, timesteps: Tensor, targets: Tensor) -> Compiled | None:
        def run(weights: list[Tensor], x: Tensor, t: Tensor, targets: Tensor) -> list[Tensor]:
            def model(x: Tensor, t: Tensor) -> Any:
                return self.view.run(weights, x, t)

            return [likelihood_gradient(model, self.task, x, t, targets, self.precision)]

        arguments = (self.view.weights(), x_t, timesteps, targets)
        try:
            traced = Traced(run, arguments, frozen=False)
            with without_autocast(x_t.device):
                compiled = self._compiler(traced, arguments)
                (found,) = compiled(*arguments)
        except Exception as error:  # noqa: BLE001 whatever a model does that no graph can hold
            logger.warning(RUN_AS_IT_IS, _name(self.model), one_line(error))
            return None
        self.view.hold(traced.met)
        self.view.attributes.settle()  # what the first call sets once and for all
        inputs = x_t, timesteps, targets
        with without_autocast(x_t.device), full_float32(x_t.device):
            expected = likelihood_gradient(self._seen, self.task, *inputs)
        good = agree(found, expected, traced.half_precision)
        half = self.precision != "fp32" or cast_to(x_t.device) is not None
        if not good and (half or shortens_float32(x_t.device)):
            plain = likelihood_gradient(self._seen, self.task, *inputs, self.precision)
            small = SMALL_IN_HALF if half else SMALL_IN_TF32
            good = as_near(found, plain, expected, small=small)
        if not good:
            logger.warning(RUN_AS_IT_IS, _name(self.model), "its graph gives another gradient")
            return None
        if counted := self.view.attributes.settle():
            every = f"it changes {', '.join(counted)} in every call"
            logger.warning(RUN_AS_IT_IS, _name(self.model), every)
            self.restless = True
            return None
        return compiled

    def _seen(self, x_t: Tensor, timesteps: Tensor) -> Any:
        """The model's own prediction, of which the form is kept."""
        prediction = self.model(shown(self.model, x_t, copy=False), timesteps)
        self._like = tree_map_only(Tensor, _zeros_like, prediction)
        return prediction


Term = tuple[Gradient, LikelihoodGuide]


class Gradients:
    """The compiled gradients that guides have asked for so far, by model and task."""

    def __init__(self, compiler: Compiler, precision: Precision = "fp32") -> None:
        self._compiler = compiler
        self._precision: Precision = precision
        self._known: Recent[tuple[Hashable, Hashable], Gradient | None] = Recent(MOST)

    def terms(self, guide: Guide, timestep: int, thorough: bool = True) -> list[Term] | None:
        """What a guide sums, switched to a timestep; None if only the guide itself knows."""
        parts = guide.parts if type(guide) is SumOfGuides else (guide,)
        terms = []
        for part in parts:
            if type(part) is not LikelihoodGuide:
                return None
            if isinstance(part.scale, int | float) and part.scale == 0:
                continue
            gradient = self._of(part)
            if gradient is None or gradient.restless:
                return None
            try:
                gradient.view.switch(timestep, thorough)
            except Exception as error:  # noqa: BLE001 whatever a model does in another form
                self._drop(part, error)
                return None
            terms.append((gradient, part))
        return terms

    def _of(self, guide: LikelihoodGuide) -> Gradient | None:
        key = cast(tuple[Hashable, Hashable], (guide.model, guide.task))
        try:
            hash(key)
        except TypeError:
            return None
        return self._known.get(key, lambda: self._made(guide))

    def _made(self, guide: LikelihoodGuide) -> Gradient | None:
        try:
            view = view_of(guide.model, guide.task)
        except Exception as error:  # noqa: BLE001 whatever a model does when it is copied
            logger.warning(RUN_AS_IT_IS, _name(guide.model), one_line(error))
            return None
        if view is None:
            return None
        return Gradient(view, guide.model, guide.task, self._compiler, self._precision)

    def _drop(self, guide: LikelihoodGuide, error: Exception) -> None:
        """Run a guide's model as it is from now on."""
        logger.warning(RUN_AS_IT_IS, _name(guide.model), one_line(error))
        self._known.put(cast(tuple[Hashable, Hashable], (guide.model, guide.task)), None)


def likelihood_gradient(
    model: NoiseAwareModel,
    task: GuidanceTask,
    x_t: Tensor,
    timesteps: Tensor,
    targets: Tensor,
    precision: Precision = "fp32",
) -> Tensor:
    """Gradient in x_t: (B, C, H, W) of log p(target | model(x_t, t)), not scaled.

    In ``"bf16"`` the model alone computes in bfloat16; from its prediction on it is float32.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        with autocast(precision, x.device):
            prediction = model(x.clone(), timesteps.clone())
            likelihood = log_likelihood_of(task, prediction, targets)
        with without_autocast(x.device):
            (gradient,) = torch.autograd.grad(likelihood.sum(), x)
    return gradient


def _zeros_like(tensor: Tensor) -> Tensor:
    """Of the same form, in the memory of one number."""
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _name(model: NoiseAwareModel) -> str:
    return type(model).__name__
