"""Copies of modules, whatever their calls have left in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["own_copy", "sharing_copy", "without_graphs", "without_hooks"]

M = TypeVar("M", bound=nn.Module)


def own_copy(module: M) -> M:
    """A module of its own, with tensors of its own.

    Tensors that a call has left in an attribute, as a hook does, are those of before without their
    graph: with it they cannot be copied at all.

    Raises:
        Exception: whatever an attribute raises that cannot be copied.
    """
    return copy.deepcopy(module, without_graphs(module))


def without_graphs(module: nn.Module) -> dict[int, Any]:
    """What :func:`copy.deepcopy` is told of the tensors in a module that have a graph.

    Returns:
        Copies without it, by the addresses of what they are copied from.
    """
    with_graph = [tensor for tensor in _tensors(module) if tensor.grad_fn is not None]
    return {id(tensor): tensor.detach().clone() for tensor in with_graph}


def without_hooks(layer: M) -> M:
    """A layer of its own that calls nothing else: a hook may hold all of the network around it."""
    hooks = (
        held
        for part in layer.modules()
        for name, held in vars(part).items()
        if name.endswith("_hooks") and isinstance(held, dict)
    )
    return copy.deepcopy(layer, {id(held): type(held)() for held in hooks})


def sharing_copy(module: nn.Module) -> nn.Module:
    """A module of its own with the tensors of another: layers can be put in place in it.

    Tensors that a hook has left in an attribute are shared like parameters and buffers, for those
    with a graph cannot be copied at all.

    Raises:
        Exception: whatever an attribute raises that cannot be copied.
    """
    return copy.deepcopy(module, {id(tensor): tensor for tensor in _tensors(module)})


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _within(value, 4)


def _within(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for part in value.values():
            yield from _within(part, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for part in value:
            yield from _within(part, depth - 1)
