"""Whether tensors are still what something was computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor

__all__ = ["Watch", "marks"]

CHUNK = 2**20
"""Values that are summed at once: small tensors are joined, for their number costs more."""


class Watch:
    """Notices that weights have changed.

    PyTorch counts writes to a tensor, and a replaced tensor has another address. Writes through
    ``.data``, as averages of weights are often copied, leave no such trace; a thorough look
    therefore compares sums of the values, too.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._marks: list[tuple[int, int]] | None = None
        self._sums: list[str] = []
        self._storages: list[Tensor] = []

    def changed(self, tensors: Callable[[], Iterable[Tensor]], thorough: bool = True) -> bool:
        """Whether anything has changed since the last call; True at the first.

        Args:
            tensors: lists what is watched; asked at a thorough look only.
            thorough: whether the list is made anew and values are summed, which reads each once.
        """
        first = self._marks is None
        listed = list(tensors()) if thorough or first else self._tensors
        seen = marks(listed)
        changed = seen != self._marks
        if thorough or changed:
            sums = _sums(listed)
            changed = changed or sums != self._sums
            self._sums = sums
            # As long as a storage is held, no other can have its address.
            self._storages = [tensor.detach() for tensor in listed]
        self._tensors, self._marks = listed, seen
        return changed


def marks(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Of each tensor PyTorch's count of writes, and its address."""
    return [_mark(tensor) for tensor in tensors]


def _mark(tensor: Tensor) -> tuple[int, int]:
    return -1 if tensor.is_inference() else tensor._version, tensor.data_ptr()


@torch.no_grad()
def _sums(tensors: Iterable[Tensor]) -> list[str]:
    """Of each chunk its sum and its length, in words, so that NaN equals itself."""
    return [
        f"{float(values.sum(dtype=torch.float64))} "
        f"{float(torch.linalg.vector_norm(values, dtype=torch.float64))}"
        for values in _chunks(tensors)
    ]


def _chunks(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """All values, (n,) at a time."""
    for _, alike in groupby(tensors, key=lambda tensor: (tensor.dtype, tensor.device)):
        joined: list[Tensor] = []
        for tensor in alike:
            joined.append(_real(tensor).flatten())
            if sum(len(values) for values in joined) >= CHUNK:
                yield torch.cat(joined)
                joined = []
        if joined:
            yield torch.cat(joined)


def _real(tensor: Tensor) -> Tensor:
    """The values in a type that can be summed."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return values if values.dtype.itemsize > 1 and values.is_floating_point() else values.double()
