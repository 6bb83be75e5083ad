"""What steers a trajectory: the guide, and the state of a batch that it is shown.

A guide turns a :class:`State` into a gradient in x_t. Whether it looks at x_t alone, as PPAP
does, or at the image that the denoiser predicts, as training-free methods do, is its own
affair: the state computes what it is asked for, once, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ppap.compute.modules import evaluating
from ppap.diffusion.denoiser import Denoiser, Prediction

__all__ = ["Guide", "State"]


class State:
    """A batch in the middle of sampling.

    ``State(x_t, timesteps)`` is enough for guides that need no denoiser. Nothing is computed
    before it is asked for, and the prediction that a guide has asked for is the one that the
    step then uses: looking at it costs nothing.

    Args:
        x_t: (B, C, H, W) noisy images.
        timesteps: (B,) original timesteps, which may differ from sample to sample.
        denoiser: what predicts the noise in ``x_t``.
        seeds: of the samples, for a guide that draws noise of its own.
        number: how many steps the trajectory has made so far.
        memory: what guides keep from one step of a trajectory to its next; a new trajectory
            starts with an empty one.

    Attributes:
        x_t: as given, detached; in a state made by :meth:`with_graph` a leaf that requires
            its gradient.
        memory: a dictionary; a guide's key is the guide itself.
    """

    def __init__(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        denoiser: Denoiser | None = None,
        *,
        seeds: Sequence[int] = (),
        number: int = 0,
        memory: dict[object, Any] | None = None,
    ) -> None:
        self.x_t = x_t.detach()
        self.timesteps = timesteps
        self.seeds = seeds
        self.number = number
        self.memory = {} if memory is None else memory
        self._denoiser = denoiser
        self._prediction: Prediction | None = None
        self._origin: State | None = None

    @property
    def denoiser(self) -> Denoiser:
        """What predicts the noise.

        Raises:
            ValueError: if the state was made without one.
        """
        if self._denoiser is None:
            raise ValueError(
                "this guide looks at the denoiser's prediction or at the noise level; give it "
                "State(x_t, timesteps, denoiser)"
            )
        return self._denoiser

    @property
    def signal(self) -> Tensor:
        """The noise level as abar: (B,) float32, from near 0 (pure noise) to near 1 (the image)."""
        return self.denoiser.schedule.signal(self.timesteps)

    def prediction(self) -> Prediction:
        """What the denoiser says of ``x_t``; computed at the first call and kept."""
        if self._prediction is None:
            with torch.set_grad_enabled(self.x_t.requires_grad), evaluating(self.denoiser):
                self._prediction = self.denoiser(self.x_t, self.timesteps)
            if self._origin is not None:
                self._origin.share(self._prediction)
        return self._prediction

    @property
    def known_prediction(self) -> Prediction | None:
        """What :meth:`prediction` would give at no cost; None if it has not been asked for."""
        return self._prediction

    def x_0(self) -> Tensor:
        """The clean images (B, C, H, W) that the prediction implies, not clipped."""
        with torch.set_grad_enabled(self.x_t.requires_grad):
            signal = self.signal[:, None, None, None]
            return (self.x_t - (1 - signal).sqrt() * self.prediction().epsilon) / signal.sqrt()

    def image(self) -> Tensor:
        """The clean images as a predictor takes them: decoded, if the denoiser's are latents."""
        with torch.set_grad_enabled(self.x_t.requires_grad):
            return self.denoiser.decode(self.x_0())

    def with_graph(self) -> State:
        """This state with ``x_t`` as a leaf: what is computed from it can be differentiated.

        ``inner = state.with_graph()``, then ``torch.autograd.grad(loss(inner.x_0()), inner.x_t)``
        goes back through the denoiser. A prediction made there serves the step too, so that the
        network runs forward once.
        """
        inner = self.at(self.x_t)
        inner.x_t = self.x_t.detach().requires_grad_()
        inner._origin = self
        return inner

    def at(self, x_t: Tensor) -> State:
        """The state of other noisy images (B, C, H, W) at the same step of the same samples."""
        return State(
            x_t,
            self.timesteps,
            self._denoiser,
            seeds=self.seeds,
            number=self.number,
            memory=self.memory,
        )

    def share(self, prediction: Prediction) -> None:
        """Keep a prediction that was made elsewhere, unless there is one already."""
        if self._prediction is None:
            fraction = prediction.variance_fraction
            self._prediction = Prediction(
                prediction.epsilon.detach(), None if fraction is None else fraction.detach()
            )


class Guide(Protocol):
    """Steers a batch towards its targets.

    One that must make the whole step itself is a :class:`ppap.diffusion.stepping.StepGuide`.
    A guide is unchanged by its calls. What it must remember from step to step it keeps in
    ``state.memory``, which belongs to one batch and one trajectory.
    """

    def __call__(self, state: State, /) -> Tensor | None:
        """The gradient that is added, scale included.

        Returns:
            (B, C, H, W) in x_t, or None for an unguided step.
        """
        ...

    @property
    def target_count(self) -> int | None:
        """How many samples its targets are for; None if any number, as for one target for all."""
        ...

    def rows(self, chosen: slice, /) -> Guide:
        """The guide of some of the samples."""
        ...
