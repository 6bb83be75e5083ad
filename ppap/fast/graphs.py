"""A whole guided step as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from ppap_kernels.dispatch import as_captured
from torch import Tensor

from ppap.compute.precision import cast_to
from ppap.compute.recent import Recent
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.denoiser import Prediction
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler, Update
from ppap.fast.gradients import Term
from ppap.fast.update import fused_update, image_ahead, step_coefficients
from ppap.files.checkpoints import one_line
from ppap.guidance.scale import Scale

__all__ = ["CapturedFunction", "StepGraphs", "can_capture"]

logger = logging.getLogger(__name__)

WARM_UPS = 3
MOST = 8
"""Steps of which graphs are kept, each with memory of its own."""


class CapturedFunction:
    """A function of tensors as a CUDA graph over static inputs; as it is if none can hold it."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        # Compilation, loading of kernels and allocations happen outside the capture.
        with torch.cuda.stream(aside), as_captured():
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
        try:  # a capture that fails to end leaves its own stream the current one
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self.graph):
                self.output = function(*self.inputs)
        except RuntimeError as error:
            logger.warning(
                "a step is run kernel by kernel, for no graph can hold it: %s", one_line(error)
            )
            self.graph = None

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        if self.graph is None:
            return self.function(*inputs)
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        self.graph.replay()
        return self.output.clone()


class StepGraphs:
    """Steps by their graphs: denoiser and gradient on a stream each, then the update.

    Args:
        predict: the denoiser, compiled.
    """

    def __init__(self, predict: Callable[[Tensor, Tensor], Prediction]) -> None:
        self._predict = predict
        self._captured: Recent[tuple[object, ...], CapturedFunction] = Recent(MOST)

    def clear(self) -> None:
        """Forget all graphs, for the denoiser is another."""
        self._captured.clear()

    def __call__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        index: int,
        x_t: Tensor,
        timesteps: Tensor,
        terms: Sequence[Term],
        targets: Sequence[Tensor],
        noise: Tensor | None,
    ) -> Update:
        """The step that :func:`can_capture` said can be one graph.

        Args:
            sampler: DDIM or DDPM.
            schedule: the respaced schedule.
            index: position in it.
            x_t: (B, C, H, W).
            timesteps: (B,).
            terms: what guides, prepared; their scales are numbers.
            targets: (B, ...) of each term.
            noise: (B, C, H, W) standard normal, for samplers that need it.
        """
        coefficients = step_coefficients(sampler, schedule, index, len(x_t), x_t.device)
        assert coefficients is not None
        scales = [_number(guide.scale, x_t) for _, guide in terms]
        inputs = [x_t, timesteps, *targets, *scales, *coefficients.values()]
        inputs += [] if noise is None else [noise]
        key = (
            repr(sampler), noise is None, x_t.shape, x_t.dtype, cast_to(x_t.device),
            tuple((term, term.view.generation) for term, _ in terms),
            tuple((target.shape, target.dtype) for target in targets),
        )  # fmt: skip

        def captured() -> CapturedFunction:
            names, side = list(coefficients), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            count = len(terms)

            def step(x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
                aims, factors, rest = rest[:count], rest[count : 2 * count], rest[2 * count :]
                found = dict(zip(names, rest, strict=False))
                fresh = rest[len(names)] if len(rest) > len(names) else None
                here = torch.cuda.current_stream()
                side.wait_stream(here)
                gradient = None
                try:
                    with torch.cuda.stream(side):
                        for (term, _), aim, factor in zip(terms, aims, factors, strict=True):
                            part = factor * term(x, t, aim)
                            gradient = part if gradient is None else gradient + part
                    prediction = self._predict(x, t)
                finally:  # an error in a capture would be hidden by that of work not joined
                    here.wait_stream(side)
                after = fused_update(sampler, found, x, prediction, gradient, fresh)
                image = image_ahead(sampler, found["signal"], x, prediction, gradient)
                return torch.stack([after, image] if gradient is None else [after, image, gradient])

            return CapturedFunction(step, inputs)

        # Streams and graphs are of the current GPU, wherever the images are.
        with torch.cuda.device_of(x_t):  # type: ignore[no-untyped-call]
            after, image, *gradients = self._captured.get(key, captured)(inputs)
        return Update(after, image, gradients[0] if gradients else None)


def _number(scale: Scale, like: Tensor) -> Tensor:
    """A scale as an input of a graph: made on the device, so that nothing waits for a copy."""
    assert isinstance(scale, int | float)
    return torch.full((), float(scale), dtype=like.dtype, device=like.device)


def can_capture(sampler: Sampler, terms: Sequence[Term]) -> bool:
    """Whether a step on a GPU is one graph: DDIM or DDPM, guided at scales that are numbers."""
    numbers = all(isinstance(guide.scale, int | float) for _, guide in terms)
    return numbers and type(sampler) in (DDIM, DDPM)
