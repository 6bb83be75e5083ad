"""Weights inside what training scripts wrap them in: dictionaries, and prefixes of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["fitted", "state_dicts"]

COMPILED = "_orig_mod."
"""What torch.compile puts into names, anywhere."""
AVERAGE_COUNT = "n_averaged"
"""torch's AveragedModel counts beside the weights."""
COUNTER = "num_batches_tracked"
"""Batch norms did not count before PyTorch 0.4.1."""


def state_dicts(loaded: Any) -> dict[str, dict[str, Tensor]]:
    """The state dicts in what a checkpoint holds, by their places in it.

    Args:
        loaded: a state dict itself (its place is ``""``), or a dictionary of such, and of other
            things: ``{"model": ...}``, ``{"state_dict": ..., "epoch": 3}``, one in another.
    """
    if not isinstance(loaded, Mapping) or not loaded:
        return {}
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
        return {"": dict(loaded)}
    inside = {str(key): value for key, value in loaded.items() if isinstance(value, Mapping)}
    found = {key: part[""] for key, value in inside.items() if "" in (part := state_dicts(value))}
    deeper = {} if found else {key: state_dicts(value) for key, value in inside.items()}
    return found | {
        f"{key}.{place}": state for key, part in deeper.items() for place, state in part.items()
    }


def fitted(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of a network, as far as wrappers alone keep it from them.

    Prefixes that all names share are taken off (``module.`` of DistributedDataParallel,
    ``_orig_mod.`` of torch.compile, ``model.`` of Lightning) as long as more names fit then, and
    counters of batches that an old file lacks start from 0.

    Args:
        own: of the network.
        state: of the file.
    """
    best = dict(state)
    shorter = {key.replace(COMPILED, ""): value for key, value in state.items()}
    while True:
        if len(own.keys() & shorter.keys()) > len(own.keys() & best.keys()):
            best = shorter
        shared = {key.partition(".")[0] for key in shorter if key != AVERAGE_COUNT}
        if len(shared) != 1 or not all("." in key for key in shorter if key != AVERAGE_COUNT):
            break
        shorter = {
            key.partition(".")[2]: value for key, value in shorter.items() if key != AVERAGE_COUNT
        }
    if own.keys() & best.keys():
        counters = [key for key in own if key.endswith(COUNTER) and key not in best]
        best |= {key: torch.zeros_like(own[key]) for key in counters}
    return best
