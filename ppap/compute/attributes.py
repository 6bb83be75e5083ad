"""Whether what decides a network's results is still what it was, its weights aside.

A graph that was traced, and a copy in which layers were put in place, hold the attributes of the
moment: a temperature, the probability of a dropout, a flag, a hook. An attribute that is set later
changes the network and not its twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from dis import get_instructions
from functools import cached_property, lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ppap.compute.changes import mark
from ppap.compute.modules import Networks, hooks_of_all

__all__ = ["Attributes"]

HOOKS = frozenset(
    ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
)
INTERNAL = frozenset(vars(nn.Module())) - HOOKS
"""What PyTorch keeps in every module: weights and layers, which are looked at elsewhere, and the
mode, which is that of evaluation in every twin's use."""
WEIGHTS = frozenset(("_parameters", "_buffers", "_modules"))
DEPTH = 4
"""How many objects deep an attribute is looked into."""
TOO_OFTEN = 5
"""Looks at which attributes may be others: a compilation takes longer than many plain steps."""
MANY = 4096
"""Parts of a container, or bytes of an array, beyond which only another one is noticed."""
PLAIN = (bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)

NUMBERS = frozenset((bool, int, float, str, type(None)))

Key = tuple[int, str]
Snapshot = dict[Key, Any]


class Attributes:
    """Notices that attributes of networks, and of what is called beside them, have changed.

    Numbers, words and containers of such are compared by their values, tensors by PyTorch's counts
    of writes, functions by what they close over and by the numbers and tensors that they name,
    anything else by what it is and by its own attributes and those of its class.

    Args:
        things: modules, with all their layers, and other objects, such as a task. Networks that
            they reach otherwise, as a function does, are looked at with their weights.

    Attributes:
        changes: how many looks found them other than before.
    """

    def __init__(self, *things: object) -> None:
        self.changes = 0
        self._things = things
        self._forget()

    def _forget(self) -> None:
        self._known: Snapshot | None = None
        self._modules: list[nn.Module] = []
        self._restless: set[Key] = set()
        self._numbers: list[tuple[dict[str, Any], str, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, whose things are others: it has not looked at them yet."""
        return {"changes": self.changes, "_things": self._things}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

    def changed(self, thorough: bool = True) -> bool:
        """Whether anything has changed since the last look; True at the first.

        Args:
            thorough: whether more is looked at than numbers and words that were there before.
        """
        if not thorough and self._known is not None and self._rests():
            return False
        modules, found = self._look()
        changed = found != self._known or modules != self._modules
        self.changes += changed
        self._keep(modules, found)
        return changed

    @property
    def too_often(self) -> bool:
        """Whether they change so often that nothing should be made for them anew."""
        return self.changes > TOO_OFTEN

    def settle(self) -> list[str]:
        """Look again after a call that came after the last look, to see what calls change.

        Tensors and other objects that a call leaves behind, such as the activations that a hook
        keeps, are left out of later looks. A number that is another after each call, such as a
        count of calls, may decide the next one's result.

        Returns:
            The names of such numbers and words.
        """
        modules, found = self._look()
        before = self._known or {}
        moved = {key for key in found | before if found.get(key) != before.get(key)}
        counted = {key for key in moved if _moved_plainly(before.get(key), found.get(key))}
        self._restless |= moved - counted
        self._keep(modules, {key: found[key] for key in found.keys() - self._restless})
        return sorted({name for _, name in counted})

    def _rests(self) -> bool:
        """Whether the numbers and words that were there are the very objects that they were."""
        return all(held.get(name, self) is value for held, name, value in self._numbers)

    def _keep(self, modules: list[nn.Module], found: Snapshot) -> None:
        self._known, self._modules = found, modules
        holders = {id(part): part.__dict__ for part in modules}
        for thing in self._things:
            holders.setdefault(id(thing), getattr(thing, "__dict__", {}))
        self._numbers = [
            (held, name, value)
            for number, held in holders.items()
            for name, value in held.items()
            if type(value) in NUMBERS and name not in INTERNAL
            if (number, name) not in self._restless
        ]

    def _look(self) -> tuple[list[nn.Module], Snapshot]:
        own = {id(p) for t in self._things if isinstance(t, nn.Module) for p in t.modules()}
        reached = Networks(*self._things).modules
        modules = list(dict.fromkeys(part for network in reached for part in network.modules()))
        found: Snapshot = {}
        seen: dict[int, object] = {id(part): part for part in modules}
        others = [thing for thing in self._things if not isinstance(thing, nn.Module)]
        for thing in others:
            found |= _parts(thing, seen)
        for base in {base for thing in (*modules, *others) for base in type(thing).__mro__}:
            found |= {(id(base), name): value for name, value in _of_class(base).items()}
        for part in modules:
            left_out = INTERNAL if id(part) in own else INTERNAL - WEIGHTS
            for name, value in part.__dict__.items():
                if name in left_out or (name in HOOKS and not value):
                    continue
                plain = type(value) in NUMBERS
                found[id(part), name] = value if plain else _frozen(value, DEPTH, seen)
        for kind, hooks in hooks_of_all().items():
            found[0, kind] = _frozen(hooks, DEPTH, seen)
        for key in self._restless & found.keys():
            del found[key]
        return modules, found


class _Same:
    """An object by what it is, held so that no other can have its place; a tensor's writes, too."""

    __slots__ = ("thing", "writes")

    def __init__(self, thing: object) -> None:
        self.thing = thing
        self.writes: tuple[int, int] | None = None
        # A tensor that vmap left behind, as in an LSTM, has no values to write to.
        if isinstance(thing, Tensor) and not is_functorch_wrapped_tensor(thing):
            self.writes = mark(thing)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Same) and self.thing is other.thing and self.writes == other.writes
        )

    __hash__ = None  # type: ignore[assignment]


def _parts(thing: object, seen: dict[int, object]) -> Snapshot:
    """An object, and each of its attributes by itself, as those of a module are."""
    held = {} if isinstance(thing, PLAIN) else _held(thing)
    if not held:
        return {(id(thing), type(thing).__name__): _frozen(thing, DEPTH, seen)}
    seen[id(thing)] = thing
    found: Snapshot = {(id(thing), type(thing).__name__): _Same(thing)}
    return found | {(id(thing), n): _frozen(part, DEPTH - 1, seen) for n, part in held.items()}


def _frozen(value: Any, depth: int, seen: dict[int, object]) -> Any:
    """A value as it is now, in a form that later changes leave alone."""
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor) or depth == 0 or id(value) in seen:
        return _Same(value)
    if isinstance(value, tuple | list | set | frozenset | Mapping):
        if len(value) > MANY:
            return _Same(value)
        if isinstance(value, Mapping):
            parts = [part for pair in value.items() for part in pair]
        else:
            parts = list(value)
        return type(value), *(_frozen(part, depth - 1, seen) for part in parts)
    if isinstance(value, np.ndarray) and value.nbytes <= 16 * MANY and value.dtype != object:
        return value.dtype, value.shape, value.tobytes()
    seen[id(value)] = value
    held = _held(value)
    return _Same(value), *((name, _frozen(part, depth - 1, seen)) for name, part in held.items())


def _held(value: Any) -> Mapping[str, Any]:
    """The attributes of an object, and what a function reads."""
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, MethodType):
        return {"self": value.__self__, "function": value.__func__}
    if isinstance(value, partial):
        return {"function": value.func, "first": value.args, "named": value.keywords}
    if isinstance(value, type | ModuleType | BuiltinFunctionType):
        return {}
    listed = fields(value) if is_dataclass(value) else ()
    held = {field.name: getattr(value, field.name, None) for field in listed}
    held |= getattr(value, "__dict__", {})
    kind = type(value)
    return {k: v for k, v in held.items() if type(getattr(kind, k, None)) is not cached_property}


def _of_function(function: FunctionType) -> dict[str, Any]:
    """What a function closes over, its defaults, and the numbers and tensors that it names."""
    held: dict[str, Any] = {"defaults": (function.__defaults__, function.__kwdefaults__)}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # of what is not set yet
            held[name] = cell.cell_contents
    return held | _named(function)


def _named(function: FunctionType) -> dict[str, Any]:
    """The numbers, words and tensors among the global names that a function reads."""
    known = function.__globals__
    named = {name: known[name] for name in _names(function.__code__) if name in known}
    return {k: v for k, v in named.items() if type(v) in NUMBERS or isinstance(v, Tensor)}


@lru_cache(MANY)
def _names(code: CodeType) -> frozenset[str]:
    """The global names that a function's code reads, and that of functions within it."""
    within = (part for part in code.co_consts if isinstance(part, CodeType))
    here = (line.argval for line in get_instructions(code) if line.opname == "LOAD_GLOBAL")
    return frozenset(here).union(*map(_names, within))


def _of_class(kind: type) -> dict[str, Any]:
    """A class's own functions, with what these name, and its numbers and words."""
    found: dict[str, Any] = {}
    if kind.__module__.partition(".")[0] in ("builtins", "torch"):
        return found
    for name, value in vars(kind).items():
        if isinstance(value, FunctionType):
            found[name] = _Same(value)
            found |= {f"global {k}": _frozen(v, 0, {}) for k, v in _named(value).items()}
        elif type(value) in NUMBERS and not name.startswith("__"):
            found[name] = value
    return found


def _moved_plainly(before: Any, now: Any) -> bool:
    """Whether a number or a word is another, where two values differ."""
    if isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now):
        pairs = zip(before, now, strict=True)
        return any(_moved_plainly(old, new) for old, new in pairs if old != new)
    return _is_plain(now)


def _is_plain(frozen: Any) -> bool:
    if isinstance(frozen, tuple):
        return all(map(_is_plain, frozen))
    return not isinstance(frozen, _Same)
