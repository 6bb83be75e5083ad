"""Loss and gradient of a training step as one graph, whose weights are inputs.

The graph is traced at fixed shapes, once for all experts, and compiled. On a CPU it is kept on disk
(:mod:`ppap.compute.packages`), so that only the first process compiles. It is compared with what it
stands for on its first batch, and left out if it gives another result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from ppap.compute.attributes import Attributes
from ppap.compute.compiler import just_in_time
from ppap.compute.exclusive import exclusive
from ppap.compute.packages import cache_folder, package
from ppap.compute.precision import Precision, autocast, in_float32
from ppap.compute.tracing import Traced
from ppap.experts.adapters.student import set_mode
from ppap.experts.bank import ExpertBank
from ppap.files.checkpoints import one_line

__all__ = [
    "Inputs",
    "Run",
    "Step",
    "as_function",
    "check_has_gradient",
    "compiled",
    "laid_out_like",
    "parted",
    "predicted",
    "put_together",
    "tried",
]

logger = logging.getLogger(__name__)

ROUNDING, HALF_ROUNDING = (5e-3, 3e-2, 0.1), (5e-2, 0.3, 0.6)
"""Errors, relative to norms, that are taken for rounding: of loss and statistics, of all gradients
together, and of a single tensor's. Rounding moves an activation over a kink now and then, after
which the layers below get another gradient; in bfloat16 that of a batch-normed network of 115
thousand weights was found to differ by 0.12 from the one in float32, and a tensor's by 0.21."""
SMALL = 1e-2
"""Share of the largest gradient that a smaller one's error is seen relative to: that of a bias
before a batch norm is nothing but rounding."""

Inputs = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]
"""An expert's tensors, its statistics, the base weights, x_t and the leaves of the targets."""
Predict = Callable[[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor], Any]
Run = Callable[..., Sequence[Tensor]]
Form = tuple[TreeSpec, tuple[object, ...]]
"""Of a prediction: its structure, and its leaves, with :data:`TENSOR` in place of tensors."""
TENSOR = "<tensor>"
PLAIN = (bool, int, float, str, type(None))


class Step:
    """A training step as a function of tensors alone, which changes none of them.

    Args:
        bank: in training mode.
        predict: (an expert's tensors, its statistics, base weights, x_t) -> predictions; it may
            write into the statistics.
        loss: (predictions, targets) -> scalar.
        precision: in which predictions are computed.
        weight: what the loss is multiplied with before its gradient is taken.

    Attributes:
        used: which of an expert's tensors have a gradient, by their places; known after a call.
        attributes: of the network and of what the loss belongs to, which a graph holds.
    """

    def __init__(
        self,
        bank: ExpertBank,
        predict: Predict,
        loss: Callable[[Any, Any], Tensor],
        precision: Precision,
        weight: float = 1.0,
    ) -> None:
        self.bank = bank
        self.predict = predict
        self.loss = loss
        self.precision: Precision = precision
        self.weight = weight
        self.used: list[int] = []
        expert, network = bank.expert(0), bank.predictor.network
        self.names, self.statistics = list(expert.tensors()), list(expert.statistics())
        base = dict(network.named_parameters()) | bank.overwritten
        self.base = {name: value.detach() for name, value in base.items()}
        self.attributes = Attributes(network, getattr(loss, "__self__", loss))
        self._form: Form | None = None

    def inputs(
        self, tensors: Sequence[Tensor], statistics: Sequence[Tensor], x_t: Tensor, targets: Any
    ) -> Inputs:
        """What a call takes, of tensors in the order of ``names`` and ``statistics``.

        Raises:
            TypeError: for targets that :func:`parted` refuses.
        """
        leaves, self._form = parted(targets)
        own = [tensor.detach() for tensor in tensors]
        return (
            own, list(statistics), list(self.base.values()), x_t.contiguous(),
            [leaf.contiguous() for leaf in leaves],
        )  # fmt: skip

    def __call__(
        self,
        tensors: list[Tensor],
        statistics: list[Tensor],
        base: list[Tensor],
        x_t: Tensor,
        targets: list[Tensor],
    ) -> list[Tensor]:
        """The loss, the new statistics, and the gradients in the tensors that are used."""
        assert self._form is not None
        network = self.bank.predictor.network
        with exclusive(network), torch.enable_grad():
            set_mode(network, True, self.statistics)
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            moved = [value.clone() for value in statistics]
            with autocast(self.precision, x_t.device):
                predictions = self.predict(
                    dict(zip(self.names, leaves, strict=True)),
                    dict(zip(self.statistics, moved, strict=True)),
                    dict(zip(self.base, base, strict=True)),
                    x_t,
                )
                loss = in_float32(self.loss, predictions, put_together(targets, self._form))
            check_has_gradient(loss, network)
            total = loss * self.weight
            found: Sequence[Tensor | None] = torch.autograd.grad(total, leaves, allow_unused=True)
        self.used = [place for place, gradient in enumerate(found) if gradient is not None]
        gradients = [gradient for gradient in found if gradient is not None]
        return [loss.detach(), *(value.detach() for value in moved), *gradients]

    def show(self, x_t: Tensor) -> None:
        """Let the student look at a first real input (B, C, H, W), before it is traced."""
        bank, expert = self.bank, self.bank.expert(0)
        network, statistics = bank.predictor.network, expert.statistics()
        with exclusive(network):
            set_mode(network, True, statistics)
            shown = bank.predictor.prepare(x_t, bank.normalised)
            bank.student.prepare(self.base, expert.tensors(), statistics, shown)

    def kind(self, inputs: Inputs) -> list[object]:
        """What a graph is fit for: form, sizes, strides and types of all inputs."""
        leaves = tree_leaves(inputs)
        return [self._form, *((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves)]


def parted(prediction: Any) -> tuple[list[Tensor], Form]:
    """The tensors of a prediction, such as a tuple of logits and None, and what holds them.

    Raises:
        TypeError: for one that holds anything but tensors, numbers, words and None.
    """
    leaves, structure = tree_flatten(prediction)
    if other := [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))]:
        raise TypeError(
            "steps that are compiled, or of all experts together, take predictions that are "
            f"tensors, or tuples and dictionaries of them, got {type(other[0]).__name__}; choose "
            "order='ascending' and compile=False"
        )
    held = tuple(TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], (structure, held)


def put_together(tensors: Sequence[Tensor], form: Form) -> Any:
    """The prediction that :func:`parted` took apart, with these tensors."""
    structure, held = form
    rest = iter(tensors)
    return tree_unflatten([next(rest) if leaf is TENSOR else leaf for leaf in held], structure)


def check_has_gradient(loss: Tensor, network: nn.Module) -> None:
    """Look whether a loss depends on what is trained.

    Raises:
        ValueError: where it does not.
    """
    if not loss.requires_grad:
        raise ValueError(
            f"no gradient reaches what is trained of {type(network).__name__}: let it, and the "
            "loss, compute by torch's differentiable operations, without torch.no_grad, detach or "
            "NumPy, and adapt layers that it uses"
        )


def predicted(
    bank: ExpertBank,
    tensors: dict[str, Tensor],
    statistics: dict[str, Tensor],
    base: dict[str, Tensor],
    images: Tensor,
) -> Any:
    """What an expert with these tensors predicts for (B, C, H, W) images."""
    inputs = bank.predictor.prepare(images, bank.normalised)
    return bank.student.run(base, tensors, statistics, inputs)


@torch.no_grad()
def compiled(step: Step, inputs: Inputs, reference: Run, what: str) -> Run | None:
    """A step compiled for inputs of such a kind.

    Args:
        step: is traced.
        inputs: of a real batch.
        reference: what the compiled step must agree with.
        what: of the step, for the logged line.

    Returns:
        None where it cannot be compiled, gives another result, or counts its calls: one line in
        the log says which.
    """
    attributes = step.attributes
    attributes.changed()
    try:
        traced = _traced(step, inputs)
        attributes.settle()  # what a first call sets once and for all
        expected, draws = tried(reference, inputs)
        if counted := attributes.settle():
            raise RuntimeError(f"every call changes {', '.join(counted)}")
        # A package draws other numbers than the network; inductor's own calls can be told not to.
        if draws or inputs[3].is_cuda:
            run = just_in_time(traced)
        else:
            run, _ = package(traced, inputs, cache_folder())
        found, _ = tried(run, inputs)
        if not _alike(found, expected, len(inputs[1]) + 1, traced.half_precision):
            raise RuntimeError("it would give another result")
    except Exception as error:  # noqa: BLE001 whatever a network does that no graph can hold
        logger.warning("%s is not compiled: %s", what, one_line(error))
        return None
    return run


def _traced(step: Step, inputs: Inputs) -> Traced:
    devices = [inputs[3].device] if inputs[3].is_cuda else []
    with torch.random.fork_rng(devices):
        return Traced(as_function(step), inputs, frozen=False)


def laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A gradient, or an optimiser's moment, by the strides of its parameter.

    A fused optimiser on a CPU goes through the memory of both, whatever their strides: it would add
    to a weight what belongs to another. Autograd sees to that itself; a graph's gradient is laid
    out as the graph computes it.
    """
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter).copy_(value)


def as_function(step: Step) -> Callable[..., list[Tensor]]:
    """A function, for the tracer counts a method's object among its arguments."""

    def function(*arguments: Any) -> list[Tensor]:
        return step(*arguments)

    return function


def tried(run: Run, inputs: Inputs) -> tuple[list[Tensor], bool]:
    """What a step gives, and whether it drew random numbers; they can be drawn again."""
    card = inputs[3].device if inputs[3].is_cuda else None

    def state() -> Tensor:
        return torch.get_rng_state() if card is None else torch.cuda.get_rng_state(card)

    with torch.random.fork_rng([] if card is None else [card]):
        before = state()
        found = [value.clone() for value in run(*inputs)]
        return found, not torch.equal(before, state())


def _alike(found: list[Tensor], expected: list[Tensor], values: int, half: bool) -> bool:
    """Whether loss, statistics and gradients agree up to rounding; NaN agrees with nothing."""
    if [value.shape for value in found] != [value.shape for value in expected]:
        return False
    value, all_gradients, one_gradient = HALF_ROUNDING if half else ROUNDING
    found, expected = ([_as_double(tensor) for tensor in some] for some in (found, expected))
    apart = [float((a - b).norm()) for a, b in zip(found, expected, strict=True)]
    norms = [float(tensor.norm()) for tensor in expected]
    largest = max(norms[values:], default=0.0)
    bounds = [value * max(norm, 1e-4) for norm in norms[:values]]
    bounds += [one_gradient * max(norm, SMALL * largest) for norm in norms[values:]]
    return math.hypot(*apart[values:]) <= all_gradients * math.hypot(*norms[values:]) and all(
        error <= most for error, most in zip(apart, bounds, strict=True)
    )


def _as_double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
