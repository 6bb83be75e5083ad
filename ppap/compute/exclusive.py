"""One thread at a time through a network whose state is changed for the length of a call."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["exclusive"]

_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def exclusive(module: nn.Module) -> threading.RLock:
    """The lock of a module, the same at every call; a thread may take it again while it has it.

    A bank runs its predictor's network with other weights than its own, which PyTorch does by
    putting them into the module: another thread would compute with them, or with those of another
    expert. It is not held during backward passes.
    """
    with _GUARD:
        return _LOCKS.setdefault(module, threading.RLock())
