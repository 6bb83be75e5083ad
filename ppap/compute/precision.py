"""In which precision networks compute, and whether a device is made for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ppap.compute.cpu import cpu_model, instruction_set, native_bfloat16, quick_bfloat16

__all__ = [
    "HALF",
    "Precision",
    "PrecisionError",
    "autocast",
    "cast_to",
    "check_precision",
    "choose_precision",
    "float32_modes",
    "full_float32",
    "has_bfloat16",
    "in_float32",
    "shortens_float32",
    "widened",
    "without_autocast",
]

HALF = {torch.float16, torch.bfloat16}

Precision = Literal["fp32", "bf16"]
"""``"bf16"`` computes products and convolutions in bfloat16 and keeps float32 weights."""


class PrecisionError(ValueError):
    """A device would only emulate the precision that was asked for."""


def check_precision(precision: Precision, device: torch.device | str) -> None:
    """Refuse a precision that the device would emulate, which is slower than float32.

    Args:
        precision: ``"fp32"`` or ``"bf16"``.
        device: where networks are to run.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
        ValueError: for a precision that does not exist.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; choose from {get_args(Precision)}")
    device = torch.device(device)
    if precision == "bf16" and not has_bfloat16(device):
        raise PrecisionError(
            f"{_name(device)} would emulate bfloat16, slower than float32; use precision='fp32'"
        )


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16, which may not be quicker."""
    device = torch.device(device)
    if device.type == "cpu":
        return native_bfloat16()
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def choose_precision(
    precision: Precision | Literal["auto"], device: torch.device | str
) -> Precision:
    """``"auto"`` is bfloat16 where it saves time, else float32, which a logged line says.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
        ValueError: for a precision that does not exist.
    """
    device = torch.device(device)
    if precision != "auto":
        check_precision(precision, device)
        return precision
    native = has_bfloat16(device)
    if native and (device.type != "cpu" or quick_bfloat16()):
        return "bf16"
    why = "gains nothing by its bfloat16" if native else "has no native bfloat16"
    logging.getLogger(__name__).warning("%s %s: computing in float32", _name(device), why)
    return "fp32"


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[None]:
    """Within it, networks compute in a precision; ``"fp32"`` changes nothing.

    Raises:
        PrecisionError: for bfloat16 on a device without instructions for it.
        ValueError: for a precision that does not exist.
    """
    check_precision(precision, device)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def cast_to(device: torch.device | str) -> torch.dtype | None:
    """The type to which an autocast that is in force casts products there; None without one."""
    kind = torch.device(device).type  # such as "meta", which knows no autocast
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device | str) -> AbstractContextManager[None]:
    """Within it, nothing is cast there, whatever is around it.

    For graphs, which hold their casts themselves, and for likelihoods.
    """
    if cast_to(device) is None:
        return nullcontext()
    return torch.autocast(torch.device(device).type, enabled=False)


def float32_modes(device: torch.device | str | None = None) -> tuple[str, ...]:
    """How float32 products and convolutions are computed: ``"ieee"``, ``"tf32"``, ``"bf16"``.

    ``"none"`` is full float32, too. PyTorch's older getters raise where a program uses its newer
    ones.

    Args:
        device: there alone; None for everywhere.
    """
    return tuple(switch.fp32_precision for switch in _switches(device))


def shortens_float32(device: torch.device | str) -> bool:
    """Whether float32 products or convolutions there are computed with shorter mantissas.

    By PyTorch's default convolutions are, on a GPU that can: in TF32.
    """
    return not set(float32_modes(device)) <= {"ieee", "none"}


@contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """Within it, float32 products and convolutions there keep all of their mantissas."""
    if not shortens_float32(device):
        yield
        return
    switches, before = _switches(device), float32_modes(device)
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, mode in zip(switches, before, strict=True):
            switch.fp32_precision = mode


def _switches(device: torch.device | str | None) -> list[Any]:
    """Of products and of convolutions."""
    backends: Any = torch.backends
    found = {
        "cuda": [backends.cuda.matmul, backends.cudnn.conv],
        "cpu": [backends.mkldnn.matmul, backends.mkldnn.conv],
    }
    if device is None:
        return [switch for every in found.values() for switch in every]
    return found.get(torch.device(device).type, [])


def in_float32(function: Callable[[Any, Any], Tensor], prediction: Any, target: Any) -> Tensor:
    """``function(prediction, target)``, from the prediction on in float32 at least.

    For log-likelihoods and losses, whose sums and differences half precision rounds to noise:
    that of a prediction, or of an autocast around it.
    """
    leaves = [leaf for leaf in tree_leaves(prediction) if isinstance(leaf, Tensor)]
    cast = {kind for kind in {leaf.device.type for leaf in leaves} if cast_to(kind)}
    if any(leaf.dtype in HALF for leaf in leaves):
        prediction = tree_map_only(Tensor, widened, prediction)
    with ExitStack() as outside:
        for kind in cast:
            outside.enter_context(torch.autocast(kind, enabled=False))
        return function(prediction, target)


def widened(tensor: Tensor) -> Tensor:
    """In float32, if it is in half precision."""
    return tensor.float() if tensor.dtype in HALF else tensor


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()} ({instruction_set()})"
