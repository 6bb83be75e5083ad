"""log p(target | image), as the methods that guide by it want it: of a state, or of an image.

A clean predictor looks at the image that the denoiser predicts, x̂₀
(:class:`ImageLikelihood`); a noise-aware model, such as a bank of experts, at x_t itself
(:class:`NoisyLikelihood`). Methods do not tell them apart, so that experts can take the clean
predictor's place in any of them. Several together are a :class:`SumOfLikelihoods`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor

from ppap.compute.modules import evaluating
from ppap.compute.options import check_number
from ppap.diffusion.guide import State
from ppap.guidance.guides import (
    NoiseAwareModel,
    Several,
    Targets,
    as_targets,
    check_guiding,
    check_takes_images,
    check_takes_timesteps,
    count_of,
    gradient_in,
    log_likelihood_of,
    move,
    shown,
    target_rows,
    targets_for,
)
from ppap.tasks.protocol import GuidanceTask

__all__ = [
    "AtLeastNoise",
    "ImageLikelihood",
    "Likelihood",
    "NoisyLikelihood",
    "SumOfLikelihoods",
    "clean_gradient",
    "noisy_gradient",
]


class Likelihood(Protocol):
    """The log-likelihood of a batch's targets."""

    def of_state(
        self, state: State, jitter: Tensor | None = None, clip: float | None = None
    ) -> Tensor:
        """(B,) log p(target | x_t), differentiable in ``state.x_t``.

        Args:
            state: made by :meth:`ppap.diffusion.guide.State.with_graph`.
            jitter: (B, C, H, W), added to x̂₀.
            clip: x̂₀ is held in [-clip, clip] first; None leaves it as it is.
        """
        ...

    def of_image(self, x_0: Tensor, state: State) -> Tensor:
        """(B,) log p(target | x_0) of clean samples (B, C, H, W), differentiable in them."""
        ...

    @property
    def target_count(self) -> int | None:
        """How many samples its targets are for; None if any number."""
        ...

    def rows(self, chosen: slice, /) -> Likelihood:
        """That of some of the samples."""
        ...


class _OfTargets:
    """What likelihoods of a model's prediction have in common: targets, and a weight."""

    task: GuidanceTask
    targets: Targets
    weight: float

    def _settle(self, model: object) -> None:
        """Look at what was given, and keep targets as a tensor."""
        check_guiding(model, self.task)
        check_number("a likelihood's weight", self.weight)
        object.__setattr__(self, "targets", as_targets(self.targets))

    def _of_prediction(self, prediction: Any, x: Tensor) -> Tensor:
        """(B,) of what the model says of a batch ``x``."""
        targets = targets_for(cast(Tensor, self.targets), x)
        return self.weight * log_likelihood_of(self.task, prediction, targets)

    @property
    def target_count(self) -> int | None:
        return count_of(cast(Tensor, self.targets))

    def rows(self, chosen: slice) -> Self:
        other = copy.copy(self)
        targets = target_rows(cast(Tensor, self.targets), chosen)
        object.__setattr__(other, "targets", targets)
        return other


@dataclass(frozen=True, eq=False)
class ImageLikelihood(_OfTargets):
    """weight * log p(target | predictor(x̂₀)); its gradient in x_t goes through the denoiser.

    Attributes:
        predictor: image (B, C, H, W) in [-1, 1] -> prediction, differentiable. Of a latent
            denoiser it is shown the decoded image.
        task: what its predictions mean.
        targets: as of :class:`ppap.guidance.guides.LikelihoodGuide`.
        weight: relative to other likelihoods in a sum.

    Raises:
        TypeError: for a weight that is no number.
        ValueError: for one that is not finite.
    """

    predictor: Callable[[Tensor], Any]
    task: GuidanceTask
    targets: Targets
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_takes_images(self.predictor)
        self._settle(self.predictor)

    def of_state(
        self, state: State, jitter: Tensor | None = None, clip: float | None = None
    ) -> Tensor:
        x_0 = state.x_0()
        if clip is not None:
            x_0 = x_0.clamp(-clip, clip)
        return self.of_image(x_0 if jitter is None else x_0 + jitter, state)

    def of_image(self, x_0: Tensor, state: State) -> Tensor:
        images = shown(self.predictor, state.denoiser.decode(x_0))
        return self._of_prediction(self.predictor(images), x_0)

    def to(self, device: torch.device | str) -> None:
        """Move the predictor, if it is a module."""
        move(self.predictor, device)


@dataclass(frozen=True, eq=False)
class NoisyLikelihood(_OfTargets):
    """weight * log p(target | model(x_t, t)); no gradient goes through the denoiser.

    Seen as a function of the clean image, it is that of x_t with the predicted noise held:
    an image x_0 stands for x_t + sqrt(abar) (x_0 - x̂₀), so that gradients in x̂₀ are
    sqrt(abar) times those in x_t.

    Attributes:
        model: (x_t, t) -> prediction, e.g. an :class:`ppap.experts.bank.ExpertBank`.
        task: what its predictions mean.
        targets: as of :class:`ppap.guidance.guides.LikelihoodGuide`.
        weight: relative to other likelihoods in a sum.

    Raises:
        TypeError: for a weight that is no number.
        ValueError: for one that is not finite.
    """

    model: NoiseAwareModel
    task: GuidanceTask
    targets: Targets
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_takes_timesteps(self.model)
        self._settle(self.model)

    def of_state(
        self, state: State, jitter: Tensor | None = None, clip: float | None = None
    ) -> Tensor:
        del clip  # x_t is looked at as it is, whatever image it predicts
        x_t = state.x_t
        if jitter is not None:
            x_t = x_t + state.signal.sqrt()[:, None, None, None] * jitter
        return self._at(x_t, state)

    def of_image(self, x_0: Tensor, state: State) -> Tensor:
        signal = state.signal[:, None, None, None]
        return self._at(state.x_t.detach() + signal.sqrt() * (x_0 - state.x_0().detach()), state)

    def _at(self, x_t: Tensor, state: State) -> Tensor:
        prediction = self.model(shown(self.model, x_t), state.timesteps.clone())
        return self._of_prediction(prediction, x_t)

    def to(self, device: torch.device | str) -> None:
        """Move the model, if it is a module."""
        move(self.model, device)


@dataclass(frozen=True, eq=False)
class SumOfLikelihoods(Several):
    """Several targets at once, independent of each other: their log-likelihoods add.

    Raises:
        TypeError: for parts that are no likelihoods.
        ValueError: for no part, or parts with different numbers of targets.
    """

    parts: tuple[Likelihood, ...]

    def __post_init__(self) -> None:
        self.check_parts("likelihoods")

    def check_part(self, part: Any) -> None:
        if not hasattr(part, "of_state"):
            mend = (
                "take its likelihood(target)"
                if hasattr(part, "likelihood")
                else "such as ppap.ImageLikelihood(predictor, task, targets)"
            )
            raise TypeError(
                f"a sum of likelihoods takes likelihoods, got {type(part).__name__}; {mend}"
            )

    def of_state(
        self, state: State, jitter: Tensor | None = None, clip: float | None = None
    ) -> Tensor:
        return torch.stack([part.of_state(state, jitter, clip) for part in self.parts]).sum(0)

    def of_image(self, x_0: Tensor, state: State) -> Tensor:
        return torch.stack([part.of_image(x_0, state) for part in self.parts]).sum(0)


@dataclass(frozen=True)
class AtLeastNoise:
    """A noise-aware model as a predictor of clean images: its expert of timestep 0.

    Attributes:
        model: (x_t, t) -> prediction.
    """

    model: NoiseAwareModel

    def __call__(self, images: Tensor) -> Any:
        timesteps = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return self.model(shown(self.model, images, copy=False), timesteps)

    def to(self, device: torch.device | str) -> None:
        """Move the model, if it is a module."""
        move(self.model, device)


def noisy_gradient(
    likelihood: Likelihood,
    state: State,
    jitters: Sequence[Tensor] = (),
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient in x_t, and the log-likelihood itself.

    Args:
        likelihood: of the state's targets.
        state: before the step; the prediction made here serves the step too.
        jitters: (B, C, H, W) each; with several, the likelihood is their mean over x̂₀ + jitter.
        clip: x̂₀ is held in [-clip, clip] first.

    Returns:
        (B, C, H, W) and (B,), neither with a graph.
    """
    inner = state.with_graph()
    with torch.enable_grad(), evaluating(likelihood):
        found = [likelihood.of_state(inner, jitter, clip) for jitter in jitters or (None,)]
        value = _log_mean(found)
        gradient = gradient_in(inner.x_t, value)
    return gradient, value.detach()


def clean_gradient(
    likelihood: Likelihood, x_0: Tensor, state: State, jitters: Sequence[Tensor] = ()
) -> Tensor:
    """The gradient (B, C, H, W) in clean images; arguments as of :func:`noisy_gradient`."""
    with torch.enable_grad(), evaluating(likelihood):
        leaf = x_0.detach().requires_grad_()
        shown = [leaf + jitter for jitter in jitters] or [leaf]
        value = _log_mean([likelihood.of_image(x, state) for x in shown])
        return gradient_in(leaf, value)


def _log_mean(log_likelihoods: Sequence[Tensor]) -> Tensor:
    if len(log_likelihoods) == 1:
        return log_likelihoods[0]
    return torch.stack(list(log_likelihoods)).logsumexp(0) - math.log(len(log_likelihoods))
