"""Guides: from a noisy image and a target to a gradient in x_t.

A guide is all a sampler sees of predictors, experts and tasks. The naive off-the-shelf
guide, the single noise-aware model and the bank of experts are the same
:class:`LikelihoodGuide` over different models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ppap.compute.modules import evaluating, weights_dtype
from ppap.compute.precision import in_float32
from ppap.diffusion.guide import Guide, State
from ppap.diffusion.stepping import check_gives_gradient, gradient_of
from ppap.files.checkpoints import one_line
from ppap.guidance.scale import (
    Scale,
    checked_scale,
    differentiable,
    is_zero,
    scale_at,
    scale_count,
    scale_rows,
    scaled,
)
from ppap.predictors.predictor import Predictor
from ppap.tasks.protocol import GuidanceTask

__all__ = [
    "Guide",
    "IgnoreTimestep",
    "LikelihoodGuide",
    "NoiseAwareModel",
    "Several",
    "SumOfGuides",
    "Targets",
    "gradient_in",
    "naive_guide",
]

NoiseAwareModel = Callable[[Tensor, Tensor], Any]
"""(x_t: (B, C, H, W), timesteps: (B,)) -> prediction."""

Targets = Tensor | Sequence[Any] | float
"""One number for every sample, or (N, ...) one target per sample; (1, ...) is one for all."""


class LikelihoodGuide:
    """scale * gradient in x_t of log p(target | model(x_t, t)).

    Args:
        model: a noise-aware model, such as an :class:`ppap.experts.bank.ExpertBank` or ADM's
            noisy classifier.
        task: what its predictions mean.
        targets: (N, ...) one target per image, as the task wants them, as a tensor or a list;
            a number, or a single row (1, ...), stands for every image.
        scale: guidance scale: a number (0 leaves the sampler unguided, bit for bit), (N,)
            numbers, one per image, or a function of abar, (B,) in (0, 1), to (B,) scales.

    Attributes:
        targets: (N, ...) or (1, ...).

    Raises:
        TypeError: for targets that are none, such as names, or something else than a model or a
            task.
        ValueError: for a scale that is not finite, or another number of scales than of
            targets.
    """

    def __init__(
        self, model: NoiseAwareModel, task: GuidanceTask, targets: Targets, scale: Scale = 1.0
    ) -> None:
        check_takes_timesteps(model)
        check_guiding(model, task)
        self.model = model
        self.task = task
        self.targets = as_targets(targets)
        self.scale: Scale = checked_scale(scale, count_of(self.targets))

    def __call__(self, state: State) -> Tensor | None:
        if is_zero(scale_at(self.scale, state)):
            return None
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
            x = state.x_t.detach().clone().requires_grad_()
            prediction = self.model(shown(self.model, x), state.timesteps.clone())
            targets = targets_for(self.targets, x)
            likelihood = log_likelihood_of(self.task, prediction, targets)
            gradient = gradient_in(x, likelihood)
        return scaled(self.scale, gradient, state)

    @property
    def target_count(self) -> int | None:
        count = count_of(self.targets)
        return scale_count(self.scale) if count is None else count

    def to(self, device: torch.device | str) -> None:
        """Move the model that guides, if it is a module."""
        move(self.model, device)

    def rows(self, chosen: slice) -> Self:
        other = copy.copy(self)  # of the same class, whatever it overrides
        other.targets = target_rows(self.targets, chosen)
        other.scale = scale_rows(self.scale, chosen)
        return other


class Several:
    """Parts whose targets are independent of each other, and for the same samples.

    Attributes:
        parts: with ``target_count`` and ``rows`` each, and ``to`` where there is a model to move.
    """

    parts: tuple[Any, ...]

    def check_parts(self, what: str) -> None:
        """Refuse no parts, or parts for different samples.

        Raises:
            TypeError: for one alone, or what has no targets.
            ValueError: calling the parts ``what``.
        """
        given: Any = self.parts
        if not isinstance(given, Iterable):
            raise TypeError(f"a sum is of several {what}, got {type(given).__name__} alone")
        object.__setattr__(self, "parts", tuple(given))
        if not self.parts:
            raise ValueError(f"a sum needs at least one of the {what}, got none")
        for part in self.parts:
            self.check_part(part)
        counts = [part.target_count for part in self.parts]
        if len({*counts} - {None}) > 1:
            raise ValueError(f"{what} must have the same number of targets, got {counts}")

    def check_part(self, part: Any) -> None:
        """Refuse what is no part of such a sum.

        Raises:
            TypeError: then.
        """
        raise NotImplementedError

    @property
    def target_count(self) -> int | None:
        return next((n for part in self.parts if (n := part.target_count) is not None), None)

    def to(self, device: torch.device | str) -> None:
        """Move the models of all that have one."""
        for part in self.parts:
            move(part, device)

    def rows(self, chosen: slice) -> Self:
        other = copy.copy(self)  # of the same class, whatever it overrides
        object.__setattr__(other, "parts", tuple(part.rows(chosen) for part in self.parts))
        return other


@dataclass(frozen=True, eq=False)
class SumOfGuides(Several):
    """Several guides at once, e.g. a class and a depth map: their gradients add.

    Raises:
        StepGuideError: for a guide that makes whole steps.
        TypeError: for parts that are no guides.
        ValueError: for no guide, or guides with different numbers of targets.
    """

    parts: tuple[Guide, ...]

    def __post_init__(self) -> None:
        self.check_parts("guides")

    def check_part(self, part: Any) -> None:
        check_gives_gradient(
            part, "a sum of guides", "give it a SumOfLikelihoods, and guide by it alone"
        )

    def __call__(self, state: State) -> Tensor | None:
        total = None
        for part in self.parts:
            gradient = gradient_of(part, state)
            if gradient is not None:
                total = gradient if total is None else total + gradient
        return total


@dataclass(frozen=True)
class IgnoreTimestep:
    """A model of images as a model of noisy images that ignores their timesteps.

    Attributes:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction.
    """

    predictor: Callable[[Tensor], Any]

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Any:
        del timesteps
        return self.predictor(shown(self.predictor, x_t, copy=False))


def naive_guide(
    predictor: Callable[[Tensor], Any], task: GuidanceTask, targets: Targets, scale: Scale = 1.0
) -> LikelihoodGuide:
    """Show the noisy image to a model that was trained on clean ones: the failing baseline.

    Args:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction.
        task: what its predictions mean.
        targets: as of :class:`LikelihoodGuide`.
        scale: guidance scale, likewise.

    Raises:
        TypeError: for experts, which are asked at a timestep.
    """
    check_takes_images(predictor)
    return LikelihoodGuide(IgnoreTimestep(predictor), task, targets, scale)


def shown(model: object, images: Tensor, copy: bool = True) -> Tensor:
    """Images (B, C, H, W) as a model takes them: a network in the one type of its weights.

    Predictors and banks see to that themselves, once they have normalised the images.

    Args:
        model: what is called with them.
        images: to be looked at.
        copy: whether they must not be the very ones, for a model may compute in place.
    """
    own = isinstance(model, Predictor) or hasattr(model, "noise_steps")
    dtype = images.dtype if own else weights_dtype(model, images.dtype)
    return images.to(dtype, copy=copy)


def log_likelihood_of(task: GuidanceTask, prediction: Any, targets: Tensor) -> Tensor:
    """(B,) log p(target | prediction), in float32 at least.

    Raises:
        TypeError: for a task that gives no tensor.
        ValueError: for one that gives anything but a number per image, such as their mean, which
            would guide each image the less the larger its batch is.
    """
    found = in_float32(task.log_likelihood, prediction, targets)
    check_per_image(found, len(targets), f"the log_likelihood of {type(task).__name__}")
    return found


def check_per_image(found: object, count: int, what: str) -> None:
    """Refuse what is not (B,) numbers.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another shape.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"{what} is a tensor (B,), a number per image, got {type(found).__name__}")
    if found.shape != (count,):
        raise ValueError(
            f"{what} is a number per image, ({count},), got {tuple(found.shape)}; sum over all "
            "dimensions but the first, and take no mean over the batch"
        )


def gradient_in(x: Tensor, log_likelihood: Tensor) -> Tensor:
    """The gradient (B, C, H, W) in images of their (B,) log-likelihoods.

    Raises:
        TypeError: for log-likelihoods that are no tensor.
        ValueError: if these do not depend on the images by operations that torch differentiates, or
            are not one per image.
    """
    check_per_image(log_likelihood, len(x), "a log-likelihood")
    found: Tensor | None = None
    if log_likelihood.requires_grad:
        (found,) = torch.autograd.grad(log_likelihood.sum(), x, allow_unused=True)
    if found is None:
        raise ValueError(
            "what guides has no gradient in the images: let it compute by torch's differentiable "
            "operations, without torch.no_grad, detach or NumPy"
        )
    return found


def move(model: object, device: torch.device | str) -> None:
    """Move a model, guide or predictor to a device, if it can be moved."""
    found = model.predictor if isinstance(model, IgnoreTimestep) else model
    if hasattr(found, "to"):
        found.to(device)


def check_guiding(model: object, task: object) -> None:
    """Refuse what cannot guide.

    Raises:
        TypeError: for a model that cannot be called, or a task without a log-likelihood.
    """
    if not callable(model):
        raise TypeError(f"a guide's model is called with noisy images, got {model!r}")
    if not callable(getattr(task, "log_likelihood", None)):
        raise TypeError(f"a guide's task has a method log_likelihood, got {task!r}")


def check_takes_timesteps(model: object) -> None:
    """Refuse a predictor of clean images where a noise-aware model is called.

    Raises:
        TypeError: naming what guides by it.
    """
    if isinstance(model, Predictor):
        raise TypeError(
            "a Predictor is called with images alone, not with timesteps: guide by "
            "ppap.naive_guide or ppap.ImageLikelihood, or by an ExpertBank of it"
        )


def check_takes_images(predictor: object) -> None:
    """Refuse experts where a predictor of clean images is called.

    Raises:
        TypeError: naming what guides by them.
    """
    if hasattr(predictor, "noise_steps"):
        raise TypeError(
            f"{type(predictor).__name__} is called with timesteps, not with images alone: take its "
            "guide(targets, scale), or likelihood(targets)"
        )


def as_targets(targets: Targets) -> Tensor:
    """Targets as a tensor (N, ...), a single number as (1,).

    Raises:
        TypeError: for what is neither a number, nor a tensor, nor a list of such.
    """
    try:
        if isinstance(targets, Sequence) and not isinstance(targets, str):
            found = torch.stack([torch.as_tensor(target) for target in targets])
        else:
            found = torch.as_tensor(targets)
        found = differentiable(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "targets are a number, a tensor (N, ...) or a list of numbers or of tensors of one "
            f"shape, got {type(targets).__name__} ({one_line(error)})"
        ) from error
    return found[None] if found.ndim == 0 else found


def count_of(targets: Tensor) -> int | None:
    """How many samples targets (N, ...) are for; None for a single one, which is for any number."""
    return None if len(targets) == 1 else len(targets)


def target_rows(targets: Tensor, chosen: slice) -> Tensor:
    """The targets of some of the samples; a single one stays."""
    return targets if len(targets) == 1 else targets[chosen]


def targets_for(targets: Tensor, x_t: Tensor) -> Tensor:
    """(B, ...) targets on the device of a batch (B, C, H, W); a single one is repeated.

    Raises:
        ValueError: if there are neither one nor B.
    """
    if len(targets) not in (1, len(x_t)):
        raise ValueError(f"{len(x_t)} images, but targets for {len(targets)}; use rows()")
    targets = targets.to(x_t.device)
    return targets if len(targets) == len(x_t) else targets.expand(len(x_t), *targets.shape[1:])
