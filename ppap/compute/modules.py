"""The networks that a call reaches, whatever they are wrapped in, and in which mode they run."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["Networks", "evaluating", "hooks_of_all", "outer_call", "weights_dtype"]

DEPTH = 8
"""How many objects deep a network is looked for: a guide's model in a few wrappers."""
INTERNAL = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}
"""What PyTorch keeps in every module, of which hooks alone may call other networks."""
MANY = 1000
"""Parts of a container beyond which none of them is looked at."""


def hooks_of_all() -> dict[str, Mapping[int, Any]]:
    """What PyTorch calls around every module there is, by its kind; empty for nothing."""
    kinds = "_global_forward_pre_hooks", "_global_forward_hooks"
    found = {kind: getattr(torch.nn.modules.module, kind) for kind in kinds}
    return {kind: hooks for kind, hooks in found.items() if hooks}


class Networks:
    """The networks that things hold: themselves, in attributes, in what functions close over.

    A guide holds its model, a partial function or a lambda the network that it calls.

    Args:
        things: modules, functions, guides, whatever can be called in the end.

    Attributes:
        modules: the outermost ones.
        number: no others of this process have it.
    """

    def __init__(self, *things: object) -> None:
        self.number = next(_NUMBERS)
        self._found: dict[nn.Module, None] = {}
        self._seen: dict[int, object] = {}
        for thing in things:
            self._visit(thing, 0)
        self.modules = list(self._found)

    def _visit(self, thing: object, depth: int) -> None:
        if depth > DEPTH or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing  # held, for another's address could be the same
        if isinstance(thing, nn.Module):
            self._found[thing] = None
            parts = list(thing.modules())
            self._seen |= {id(part): part for part in parts}
            for part in parts:
                for called in _called(part):
                    self._visit(called, depth + 1)
            return
        for held in _held(thing):
            self._visit(held, depth + 1)

    def cover(self, things: Iterable[object]) -> bool:
        """Whether all of these were met on the way."""
        return all(id(thing) in self._seen for thing in things)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it, the networks are in evaluation mode; then in that of before.

        Dropout and the statistics of a batch would make a sample depend on more than its seed, and
        sampling would move the running statistics of a network that was left in training mode.
        Calls may overlap, in threads too: the last one to end restores the modes.
        """
        for module in self.modules:
            _MODES.enter(module)
        outer = getattr(_INSIDE, "networks", ())
        _INSIDE.networks = (*outer, self)
        try:
            yield
        finally:
            _INSIDE.networks = outer
            for module in reversed(self.modules):
                _MODES.leave(module)


def evaluating(*things: object) -> AbstractContextManager[None]:
    """:meth:`Networks.evaluating` of things, unless a call around this one sees to it."""
    outer: tuple[Networks, ...] = getattr(_INSIDE, "networks", ())
    if any(networks.cover(things) for networks in outer):
        return nullcontext()
    return Networks(*things).evaluating()


def weights_dtype(network: object, otherwise: torch.dtype) -> torch.dtype:
    """The one floating type of all of a network's parameters; ``otherwise`` if there is none."""
    # Layer by layer: a network may list its parameters in a way of its own, or not at all.
    parts = network.modules() if isinstance(network, nn.Module) else ()
    held = (weight for part in parts for weight in part._parameters.values())
    types = {weight.dtype for weight in held if weight is not None and weight.is_floating_point()}
    return types.pop() if len(types) == 1 else otherwise


def outer_call() -> int | None:
    """The number of this thread's outermost call with networks in evaluation mode, if in one.

    A trajectory is one call from its first step to its last; no two calls have one number.
    """
    outer: tuple[Networks, ...] = getattr(_INSIDE, "networks", ())
    return outer[0].number if outer else None


def _called(part: nn.Module) -> Iterator[object]:
    """What a layer may call besides its own layers: functions, hooks, networks kept in a list."""
    for name, value in vars(part).items():
        if name in INTERNAL:
            continue
        if isinstance(value, dict | list | tuple | set):
            if 0 < len(value) <= MANY:
                yield from filter(callable, value.values() if isinstance(value, dict) else value)
        elif callable(value):
            yield value


def _held(thing: object) -> Iterator[object]:
    """What an object, a container or a function keeps hold of."""
    if isinstance(thing, str | bytes | int | float | Tensor | ModuleType | BuiltinFunctionType):
        return
    if isinstance(thing, type) or thing is None:
        return
    if isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, FunctionType):
        named = inspect.getclosurevars(thing)
        yield from named.nonlocals.values()
        # Of what a function merely names, networks alone: whole libraries hang on the rest.
        yield from (value for value in named.globals.values() if isinstance(value, nn.Module))
        yield from thing.__defaults__ or ()
        yield from (thing.__kwdefaults__ or {}).values()
    elif isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, Sequence | set | frozenset):
        yield from thing if len(thing) <= MANY else ()
    else:
        yield from getattr(thing, "__dict__", {}).values()
        for kind in type(thing).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                yield getattr(thing, name, None)


class _Modes:
    """Which networks are held in evaluation mode, by how many, and what they were before."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]]
        self._held = WeakKeyDictionary()

    def enter(self, module: nn.Module) -> None:
        with self._lock:
            count, before = self._held.get(module, (0, []))
            if any(part.training for part in module.modules()):
                before = before or [(part, part.training) for part in module.modules()]
                module.eval()
            self._held[module] = count + 1, before

    def leave(self, module: nn.Module) -> None:
        with self._lock:
            count, before = self._held[module]
            if count > 1:
                self._held[module] = count - 1, before
                return
            del self._held[module]
            for part, training in before:
                # Outermost first, as they are listed, so that the last word is a part's own.
                if part.training != training:
                    part.train(training)


_MODES = _Modes()
_NUMBERS = itertools.count()
_INSIDE = threading.local()
"""Of each thread, whose networks it has in evaluation mode just now."""
