"""Whether tensors are still what something was computed from."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["Watch", "mark", "marks"]

CHUNK = 2**16
"""Values that are summed at once: small tensors are joined, for their number costs more."""


class Watch:
    """Notices that weights have changed.

    PyTorch counts writes to a tensor, and a replaced tensor has another address. Writes through
    ``.data``, as averages of weights are often copied, leave no such trace; a thorough look
    therefore compares digests of the values, too.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._marks: list[tuple[int, int]] | None = None
        self._digests: list[int] = []
        self._storages: list[Tensor] = []

    def changed(self, tensors: Callable[[], Iterable[Tensor]], thorough: bool = True) -> bool:
        """Whether anything has changed since the last call; True at the first.

        Args:
            tensors: lists what is watched; asked at a thorough look only.
            thorough: whether the list is made anew and digests are compared, which reads each
                value once.
        """
        first = self._marks is None
        listed = list(tensors()) if thorough or first else self._tensors
        seen = marks(listed)
        changed = seen != self._marks
        if thorough or changed:
            digests = _digests(listed)
            changed = changed or digests != self._digests
            self._digests = digests
            # As long as a storage is held, no other can have its address.
            self._storages = [tensor.detach() for tensor in listed]
        self._tensors, self._marks = listed, seen
        return changed


def marks(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Of each tensor PyTorch's count of writes, and its address."""
    return [mark(tensor) for tensor in tensors]


def mark(tensor: Tensor) -> tuple[int, int]:
    return -1 if tensor.is_inference() else tensor._version, tensor.data_ptr()


@torch.no_grad()
def _digests(tensors: Iterable[Tensor]) -> list[int]:
    """Of each chunk of bits a sum in which every place counts otherwise.

    The weights are odd, so that no change of a single value leaves the sum as it was; they differ
    from place to place, so that values which change places are noticed, too. High bits are mixed
    into lower ones first: every odd weight leaves the highest, a sign, in its place, where two
    changes may cancel. Bits are compared and not values: NaN equals itself.
    """
    found = [
        ((part ^ (part >> 16)) * _weights(part.device)[: len(part)]).sum()
        for bits in _joined(tensors)
        for part in torch.split(bits, CHUNK)
    ]
    home = found[0].device if found else None
    return torch.stack([digest.to(home) for digest in found]).tolist() if found else []


def _joined(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """All bits, (n,) int32 at a time, of values of one type on one device."""
    alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[tensor.device, tensor.dtype].append(_row(tensor))
    for rows in alike.values():
        joined: list[Tensor] = []
        count = 0
        for row in rows:
            joined.append(row)
            count += row.numel()
            if count >= CHUNK:
                yield _bits(torch.cat(joined) if len(joined) > 1 else row)
                joined, count = [], 0
        if joined:
            yield _bits(torch.cat(joined))


def _row(tensor: Tensor) -> Tensor:
    """A tensor's values, (n,)."""
    values = tensor.detach()
    if values.is_complex() or values.is_neg():
        values = values.resolve_conj().resolve_neg()
    return values.reshape(-1)


def _bits(row: Tensor) -> Tensor:
    """The bits of (n,) values, (m,) int32."""
    values = torch.view_as_real(row).reshape(-1) if row.is_complex() else row.contiguous()
    if values.dtype.itemsize >= 4:
        return values.view(torch.int32)
    narrow = torch.uint8 if values.dtype.itemsize == 1 else torch.int16
    return values.view(narrow).to(torch.int32)


@functools.cache
def _weights(device: torch.device) -> Tensor:
    """(CHUNK,) odd int32 numbers."""
    drawn = torch.randint(-(2**30), 2**30, (CHUNK,), generator=torch.Generator().manual_seed(0))
    return (2 * drawn + 1).to(torch.int32).to(device)
