"""Copies of a module's structure that share all its tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["sharing_copy"]


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
