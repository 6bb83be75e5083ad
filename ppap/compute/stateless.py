"""A module run with other parameters and buffers than its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call

from ppap.compute.exclusive import exclusive

__all__ = ["copied", "forget_kept", "run_with"]


def run_with(module: nn.Module, state: Mapping[str, Tensor], *inputs: Any) -> Any:
    """What a module returns with other parameters and buffers, and leaves no trace in it.

    A parameter that several layers share is replaced in all of them. A layer that has several
    names is replaced by one of them: :func:`torch.func.functional_call` goes by names, and would
    leave the last value in such a layer (torch 2.14).

    In training mode layers may write into their buffers, as a spectral norm does: those that are
    not replaced are copied for the call.

    Args:
        module: is left as it is.
        state: by the names that ``named_parameters`` and ``named_buffers`` give; what is left out
            stays the module's own.
        inputs: of the module.

    Raises:
        ValueError: for several values of one shared weight, and, where a gradient is wanted, for a
            module that computes layers again in the backward pass: it has its own weights by then,
            and the gradient would be neither's.
    """
    state = dict(state)
    names: dict[int, list[str]] = {}
    for path, layer in module.named_modules():
        for held in (layer._parameters, layer._buffers):
            for leaf, tensor in held.items():
                if tensor is not None:
                    names.setdefault(id(tensor), []).append(f"{path}.{leaf}" if path else leaf)
    if module.training:
        state |= _own_buffers(module, state)
    whole = dict(state)
    for tied in names.values():
        if len(tied) > 1:
            given = [name for name in tied if name in state]
            if any(state[name] is not state[given[0]] for name in given):
                raise ValueError(f"{' and '.join(given)} are one weight, and got several values")
            whole |= {name: state[given[0]] for name in tied if given}
    keeping = _keeping(module)
    with exclusive(module), _nothing_recomputed(type(module).__name__):
        _let_go(keeping)
        try:
            return functional_call(module, whole, inputs, tie_weights=False)
        finally:
            _let_go(keeping)


def forget_kept(module: nn.Module) -> None:
    """Have layers drop what they keep of their weights, as timm's LeViT does of attention's biases.

    A layer that keeps such overrides ``train`` to let go of it, where its mode is set: it is set to
    what it is.
    """
    _let_go(_keeping(module))


def _keeping(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if type(layer).train is not nn.Module.train]


def _let_go(layers: list[nn.Module]) -> None:
    for layer in layers:
        modes = [(part, part.training) for part in layer.modules()]
        layer.train(layer.training)
        for part, training in modes:
            part.training = training


@contextmanager
def _nothing_recomputed(kind: str) -> Iterator[None]:
    """Refuse ``torch.utils.checkpoint``, which keeps by hooks what it computes again later.

    Where the caller has hooks of its own around, as ``save_on_cpu``, they cannot be refused.
    """
    if not torch.is_grad_enabled():
        yield
        return
    refusal = (
        f"{kind} computes layers again in the backward pass (torch.utils.checkpoint), when other "
        "weights than now are in place; switch that off in the network, such as by "
        "network.set_grad_checkpointing(False)"
    )
    with ExitStack() as stack:
        with suppress(RuntimeError):
            stack.enter_context(disable_saved_tensors_hooks(refusal))
        try:
            yield
        except RuntimeError as error:
            if str(error) == refusal:
                raise ValueError(refusal) from error
            raise


def _own_buffers(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the buffers that a state leaves out, or holds as the very ones of the module."""
    return {
        name: buffer.clone()
        for name, buffer in module.named_buffers()
        if state.get(name, buffer) is buffer
    }


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in tensors of their own, for a run that may write into them."""
    return {name: value.clone() for name, value in state.items()}
