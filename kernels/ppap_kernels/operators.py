"""What the operators share: autograd that functorch and the compiler both accept, and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # public, not re-exported

__all__ = ["autocast", "differentiable", "reference_vjp"]


def differentiable(
    op: CustomOpDef,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the derivative of a custom op; return the callable that every caller uses.

    An operator's registered autograd does not take part in torch.func transforms, an
    `autograd.Function` with `setup_context` does, and the compiler wants the operator. So the
    same two functions serve both, and the callable takes the one that fits. Its backward must
    itself call only callables made here, so that second derivatives work.

    Args:
        op: takes positional arguments only.
        setup_context: (ctx, inputs, output) -> None.
        backward: (ctx, *grad_outputs) -> one gradient or None per input.
    """
    op.register_autograd(backward, setup_context=setup_context)

    def forward(*arguments: Any) -> Any:
        return op(*arguments)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
    }
    function: Any = type(op._name.replace("::", "_"), (torch.autograd.Function,), members)

    def call(*arguments: Any) -> Any:
        return op(*arguments) if torch.compiler.is_compiling() else function.apply(*arguments)

    return call


def reference_vjp(
    reference: Callable[..., Tensor], arguments: tuple[Any, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of `reference` in its tensor arguments, None for the others.

    Args:
        reference: plain torch, hence differentiable to any order.
        arguments: its positional arguments.
        grad: gradient in its result.
    """
    at = [i for i, argument in enumerate(arguments) if isinstance(argument, Tensor)]

    def of_tensors(*tensors: Tensor) -> Tensor:
        filled = list(arguments)
        for i, tensor in zip(at, tensors, strict=True):
            filled[i] = tensor
        return reference(*filled)

    vjp = torch.func.vjp(of_tensors, *[arguments[i] for i in at])[1]
    gradients = dict(zip(at, vjp(grad), strict=True))
    return tuple(gradients.get(i) for i in range(len(arguments)))


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the autocast dtype where autocast is on for their device, else unchanged."""
    first = next(t for t in tensors if t is not None)
    device = first.device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None else t.to(dtype) for t in tensors)
