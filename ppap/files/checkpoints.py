"""Reading and writing weights: never executes a file's code, never accepts a wrong one."""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ppap.files.wrapped import fitted, state_dicts

__all__ = [
    "PART",
    "CheckpointError",
    "check_and_load",
    "check_state",
    "check_values",
    "fingerprint",
    "load_state",
    "load_weights",
    "misfit",
    "one_line",
    "plain_number",
    "save_weights",
]

SHOWN_KEYS = 4
PART = ".part"
"""Ends the name of a file that is being written, until it takes another's place."""
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
FOREIGN = re.compile(r"GLOBAL (\S+) was not an allowed global")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, hostile or of another network."""


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or a PyTorch checkpoint, on the CPU.

    PyTorch files are read with ``weights_only=True``: a pickle that carries code is refused.
    A dictionary in which there is one state dict, such as ``{"model": ..., "epoch": 3}``, gives
    that one.

    Raises:
        CheckpointError: if the file is missing, damaged, hostile, or holds no tensors or several
            state dicts.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; check the path or fetch the file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # options, which many files carry
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        foreign = FOREIGN.search(str(error))
        reason = f"a {foreign[1]}" if foreign else one_line(error)
        raise CheckpointError(
            f"{path.name} is damaged or holds more than weights ({reason}); fetch it again, or "
            "save the state_dict of what is in it"
        ) from error
    found = state_dicts(loaded)
    if len(found) > 1:
        *some, last = found
        path_in = "".join(f'["{part}"]' for part in last.split("."))
        raise CheckpointError(
            f"{path.name} holds several networks: {', '.join(some)} and {last}; save the one you "
            f'mean, e.g. torch.save(torch.load("{path.name}"){path_in}, "weights.pth")'
        )
    if not found:
        held = f"of {_some([*map(str, loaded)])}" if isinstance(loaded, Mapping) else ""
        raise CheckpointError(
            f"{path.name} is not a state dict of tensors but a {type(loaded).__name__} "
            f"{held}".rstrip()
            + "; fetch the weights file"
        )
    return next(iter(found.values()))


def one_line(error: Exception) -> str:
    """What an error says, cut to one line."""
    lines = ESCAPES.sub("", str(error)).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fill a module from a checkpoint, strictly; half-precision weights widen to the module's.

    Raises:
        CheckpointError: as :func:`load_state`, and if keys are missing or unexpected or a
            shape differs; the module is then unchanged.
    """
    check_and_load(module, load_state(path), Path(path).name)


def check_and_load(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a module from tensors, strictly, or say all that is wrong in one line.

    Wrappers' prefixes of names are taken off (:func:`ppap.files.wrapped.fitted`). Of a weight that
    is called by several names the file may hold one, as safetensors' own ``save_model`` writes it.

    Raises:
        CheckpointError: as :func:`load_weights`, and if the file holds different weights where the
            network has one.
    """
    own = module.state_dict()
    state = fitted(own, state)
    whose, shared = type(module).__name__, _shared(own)
    for names in shared:
        held = [name for name in names if name in state]
        state |= {name: state[held[0]] for name in names if held and name not in held}
    check_state(own, state, source, whose)
    for first, *others in shared:
        for name in others:
            if not torch.equal(state[first], state[name].to(state[first].dtype)):
                raise CheckpointError(
                    f"{source} holds different weights for {first} and {name}, which are one in "
                    f"{whose}; make the network without sharing them"
                )
    own.update(state)  # rather than a plain dict, which lacks the versions of layers
    module.load_state_dict(own)


def _shared(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of one weight each that is in several places, as of layers that are tied."""
    places: dict[Any, list[str]] = {}
    for key, tensor in own.items():
        if tensor.numel() and not tensor.is_meta:
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            places.setdefault(place, []).append(key)
    return [names for names in places.values() if len(names) > 1]


def check_state(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, whose: str = "the network"
) -> None:
    """Compare names and shapes of two state dicts, and see that there are weights in the second.

    Raises:
        CheckpointError: with all that is missing, unexpected or of another shape in one line; for
            integers in place of weights, as of a quantised network, and for NaN.
    """
    problems = misfit(
        [key for key in own if key not in state],
        [key for key in state if key not in own],
        [
            f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in own.items()
            if key in state and state[key].shape != tensor.shape
        ],
    )
    if problems:
        raise CheckpointError(
            f"{source} does not fit {whose}: {problems}; "
            "check that the file and the architecture's settings belong together"
        )
    check_values(
        {key: state[key] for key, tensor in own.items() if tensor.is_floating_point()}, source
    )


def check_values(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse what no network computes with.

    Args:
        weights: that should be floating-point numbers.
        source: they are from, for the message.

    Raises:
        CheckpointError: for integers, as of a quantised network, for NaN, and for tensors that are
            sparse or, on the device ``meta``, have no values.
    """
    if other := [k for k, value in weights.items() if value.is_meta or value.is_sparse]:
        raise CheckpointError(
            f"{source} holds tensors that are sparse or have no values for {_some(other)}; save "
            "dense ones, on a device that has memory"
        )
    if whole := [key for key in weights if not weights[key].is_floating_point()]:
        raise CheckpointError(
            f"{source} holds integers for {_some(whole)}; weights that were quantised are of use "
            "to what quantised them alone: fetch those of before"
        )
    if unknown := [key for key in weights if _has_nan(weights[key])]:
        raise CheckpointError(
            f"{source} holds NaN in {_some(unknown)}: a training went astray, or the file is "
            "damaged; take an earlier one"
        )


def _has_nan(weight: Tensor) -> bool:
    wide = weight.float() if weight.dtype.itemsize == 1 else weight  # few operations know 8 bits
    return bool(wide.isnan().any())


def misfit(missing: Sequence[str], unexpected: Sequence[str], wrong: Sequence[str]) -> str:
    """What keeps weights from fitting a network, in one line; empty if nothing does.

    Args:
        missing: names of weights that the network has and the file has not.
        unexpected: the other way round.
        wrong: names, and maybe shapes, of weights of a wrong shape.
    """
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    return "; ".join(f"{kind} {_some(names)}" for kind, names in kinds.items() if names)


def save_weights(
    state: Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as safetensors, atomically: beside the target first, then renamed.

    Args:
        state: tensors by name.
        path: ends in ``.safetensors``.
        dtype: floating-point tensors are cast to it, e.g. ``torch.float16``.
        metadata: strings kept in the file's header.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: (value.to(dtype) if dtype and value.is_floating_point() else value)
        .detach()
        .cpu()
        .contiguous()
        .clone()
        for key, value in state.items()
    }
    scratch = path.with_name(path.name + PART)
    # safetensors' own writing to a file leaves one of an unknown name behind if it is killed.
    scratch.write_bytes(save(tensors, metadata=dict(metadata or {})))
    scratch.replace(path)


def plain_number(value: Any) -> Any:
    """What JSON can hold of a number of NumPy's or a tensor's: the ``default`` of ``json.dumps``.

    Raises:
        TypeError: for anything but a single number.
    """
    if isinstance(value, np.generic | Tensor) and getattr(value, "ndim", 0) == 0:
        return value.item()
    raise TypeError(f"no number that could be written down: {value!r}")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of the names and bytes of tensors, in whatever order they come."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_KEYS])
    return shown if len(names) <= SHOWN_KEYS else f"{shown} and {len(names) - SHOWN_KEYS} more"
