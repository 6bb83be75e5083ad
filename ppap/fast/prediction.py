"""The denoiser's prediction as a traced graph in which its weights are constants."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppap.compute.agreement import agree
from ppap.compute.attributes import Attributes
from ppap.compute.changes import Watch
from ppap.compute.precision import Precision, autocast, cast_to, without_autocast
from ppap.compute.stateless import run_with
from ppap.compute.tracing import Traced, laid_out, state_of
from ppap.diffusion.denoiser import Denoiser, Prediction
from ppap.files.checkpoints import one_line

__all__ = ["CompiledDenoiser"]

logger = logging.getLogger(__name__)

Compiler = Callable[..., Callable[..., Any]]


class CompiledDenoiser:
    """(x_t, timesteps) -> prediction, at fixed shapes.

    Args:
        denoiser: what is compiled; run as it is if it cannot be, or if its graph gives another
            result.
        compiler: of graphs, called with ``freezing=True``.
        precision: in which the network computes; its prediction is in the images' type.
    """

    def __init__(
        self, denoiser: Denoiser, compiler: Compiler, precision: Precision = "fp32"
    ) -> None:
        self.denoiser = denoiser
        self.precision: Precision = precision
        self._compiler = compiler
        self._watch = Watch()
        self._met: list[Tensor] = []  # what graphs hold besides the denoiser's own weights
        self._attributes = Attributes(denoiser)
        self._restless = False
        self._graphs: dict[tuple[object, ...], Callable[..., Any]] = {}

    def refresh(self, thorough: bool = True) -> bool:
        """Forget the graphs if the denoiser is not what it was before; whether it is not.

        Args:
            thorough: as of :meth:`ppap.compute.changes.Watch.changed`.
        """
        changed = self._watch.changed(self._watched, thorough)
        if self._attributes.changed(thorough):
            changed = True
            if self._attributes.too_often and not self._restless:
                self._restless = True
                logger.warning(
                    "the denoiser is run as it is: its attributes change again and again"
                )
        if changed:
            self._graphs.clear()
            self._hold([])
        return changed

    def _watched(self) -> list[Tensor]:
        return [*state_of(self.denoiser).values(), *self._met]

    def _hold(self, met: list[Tensor]) -> None:
        """Watch tensors from now on, and those of the denoiser."""
        if met or self._met:
            self._met = met
            self._watch.changed(self._watched)

    def __call__(self, x_t: Tensor, timesteps: Tensor) -> Prediction:
        """As the denoiser's own, for (B, C, H, W) images and (B,) timesteps."""
        if self._restless:
            return Prediction(*self._plain(x_t, timesteps))
        key = x_t.shape, x_t.dtype, x_t.device, cast_to(x_t.device)
        if key not in self._graphs:
            self._graphs[key] = self._graph(x_t, timesteps)
        with without_autocast(x_t.device):
            return Prediction(*self._graphs[key](x_t, timesteps))

    def _plain(self, x_t: Tensor, timesteps: Tensor) -> list[Tensor]:
        with autocast(self.precision, x_t.device):
            return _parts(self.denoiser(x_t, timesteps))

    def _graph(self, x_t: Tensor, timesteps: Tensor) -> Callable[..., Any]:
        state = state_of(self.denoiser)
        names = list(state)
        weights = [laid_out(value.detach().to(x_t.device)) for value in state.values()]

        def run(weights: list[Tensor], x: Tensor, t: Tensor) -> list[Tensor]:
            state = dict(zip(names, weights, strict=True))
            with autocast(self.precision, x.device):
                return _parts(run_with(self.denoiser, state, x, t))

        try:
            traced = Traced(run, (weights, x_t, timesteps), frozen=True)
            with without_autocast(x_t.device):
                compiled = self._compiler(traced, (x_t, timesteps), freezing=True)
                found = compiled(x_t, timesteps)
        except Exception as error:  # noqa: BLE001 whatever a network does that no graph can hold
            logger.warning("the denoiser is run as it is: %s", one_line(error))
            return self._plain
        self._hold([*self._met, *traced.met])
        self._attributes.settle()  # what the first call sets once and for all
        with torch.no_grad(), without_autocast(x_t.device):
            expected = _parts(self.denoiser(x_t, timesteps))
        if not all(
            agree(a, b, traced.half_precision) for a, b in zip(found, expected, strict=True)
        ):
            logger.warning("the denoiser is run as it is: its graph gives another result")
            return self._plain
        if counted := self._attributes.settle():
            every = ", ".join(counted)
            logger.warning("the denoiser is run as it is: it changes %s in every call", every)
            self._restless = True
            return self._plain
        return compiled


def _parts(prediction: Prediction) -> list[Tensor]:
    fraction = prediction.variance_fraction
    return [prediction.epsilon] if fraction is None else [prediction.epsilon, fraction]
