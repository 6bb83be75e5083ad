"""Merging: the weights of a network under an expert, kept, or written into it and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppap.compute.changes import Watch, marks
from ppap.compute.modules import outer_call
from ppap.compute.precision import cast_to
from ppap.compute.stateless import forget_kept
from ppap.experts.adapters.student import Student
from ppap.experts.expert import Expert

__all__ = ["MergedWeights", "NetworkWeights", "WrittenWeights", "keep_out_of_state"]


class NetworkWeights:
    """A frozen network's own weights, and those under each expert: kept, or written into it.

    Args:
        network: the frozen predictor's.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._written = WrittenWeights(network)
        self._merged = MergedWeights()

    @property
    def replaced(self) -> dict[str, Tensor]:
        """What :meth:`merge` replaced in the network, by name; empty when nothing is written."""
        return self._written.where_it_is()

    def base(self) -> dict[str, Tensor]:
        """The unadapted network's parameters, by name."""
        return dict(self.network.named_parameters()) | self.replaced

    @torch.inference_mode(False)
    @torch.no_grad()
    def under(self, student: Student, expert: Expert) -> dict[str, Tensor]:
        """Parameters and statistics under an expert, by name; no gradient."""
        kept, live = expert.statistics(), dict(self.network.named_buffers())
        kept |= {key: kept[key].to(live[key].dtype) for key in kept.keys() & live.keys()}
        found = student.effective(self.base(), expert.tensors()) | kept
        return {key: value.detach() for key, value in found.items()}

    def kept(
        self, number: int, expert: Expert, merge: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``merge`` computes for an expert; kept until another is asked for or it changes."""
        own = [*expert.parameters(), *expert.buffers()]
        return self._merged.of(number, own, list(self.base().values()), merge)

    def forget(self) -> None:
        """Merge anew at the next call."""
        self._merged.forget()

    def merge(self, student: Student, expert: Expert) -> None:
        """Write an expert into the network, in the network's own precision."""
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            self._written.write(self.under(student, expert))

    def as_it_was(self) -> AbstractContextManager[None]:
        """Within it the network has its own weights, whatever is written into it."""
        return self._written.lifted()

    def restore(self) -> None:
        """Make the network what it was before :meth:`merge`, bit for bit."""
        self._written.restore()
        self._merged.forget()


def keep_out_of_state(bank: Any) -> None:
    """Make the ``state_dict`` of a bank that of before a merge, and undo merges before it loads.

    Args:
        bank: an :class:`ppap.experts.bank.ExpertBank`.
    """
    bank.register_state_dict_post_hook(_put_originals)
    bank.register_load_state_dict_pre_hook(_unmerge)


def _put_originals(bank: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key, value in WrittenWeights(bank.predictor.network).originals().items():
        name = f"{prefix}predictor.network.{key}"
        if name in state:
            state[name] = value


def _unmerge(bank: Any, *_: Any) -> None:
    bank.unmerge()


class MergedWeights:
    """The merged weights of the expert that was used last, as long as nothing has changed.

    Within an autocast they are merged in its type, and not kept beyond it.

    Values are looked at once a trajectory, and at every call outside one, so that a write which
    PyTorch does not count, as through ``.data``, is noticed, too; other writes are at once.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[int, torch.dtype | None], dict[str, Tensor]] | None = None
        self._watch = Watch()
        self._marks: list[tuple[int, int]] = []
        self._call: int | None = None

    def of(
        self,
        expert: int,
        own: Sequence[Tensor],
        base: Sequence[Tensor],
        merge: Callable[[], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The merged weights of an expert.

        Args:
            expert: whose they are.
            own: its tensors.
            base: the frozen network's.
            merge: computes them.
        """
        listed, call = [*own, *base], outer_call()
        seen = marks(listed)
        which = expert, cast_to(listed[0].device)
        # Another expert's tensors are looked at when their turn comes, though nothing changed.
        turned = self._kept is None or self._kept[0] != which
        if turned or call is None or call != self._call or seen != self._marks:
            if self._watch.changed(lambda: listed) or turned:
                self._kept = which, merge()
            self._marks, self._call = seen, call
        assert self._kept is not None
        return self._kept[1]

    def forget(self) -> None:
        """Merge anew at the next call."""
        self._kept = None


class WrittenWeights:
    """Values written into a module in place, which remembers what they replaced.

    All who write into one module share what it was before: a second bank takes a predictor into
    which a first one is merged for what it was.

    Args:
        module: whose parameters and buffers are overwritten.

    Attributes:
        replaced: the original values by name; empty when nothing is written.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.replaced: dict[str, Tensor] = _REPLACED.setdefault(module, {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copied module remember the copied values."""
        self.module = state["module"]
        self.replaced = _REPLACED.setdefault(self.module, state["replaced"])

    def where_it_is(self) -> dict[str, Tensor]:
        """:attr:`replaced`, in the type and on the device that the module has by now."""
        live = self._live() if self.replaced else {}
        for key, value in self.replaced.items():
            self.replaced[key] = value.to(live[key])
        return self.replaced

    def originals(self) -> dict[str, Tensor]:
        """As :attr:`replaced`, a shared one by each of its names."""
        live, replaced = self._live(), self.where_it_is()
        known = {id(live[key]): value for key, value in replaced.items()}
        every = chain(
            self.module.named_parameters(remove_duplicate=False),
            self.module.named_buffers(remove_duplicate=False),
        )
        return {key: known[id(tensor)] for key, tensor in every if id(tensor) in known}

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters and buffers by name; what is there already is left alone."""
        live, replaced = self._live(), self.replaced
        for key, value in values.items():
            if not value.is_set_to(live[key]):
                with torch.inference_mode(False):  # for it is used beyond it, and in training
                    replaced.setdefault(key, live[key].clone())
                live[key].copy_(value)
        forget_kept(self.module)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the original values back, bit for bit."""
        live, replaced = self._live(), self.replaced
        for key, value in replaced.items():
            live[key].copy_(value)
        replaced.clear()
        forget_kept(self.module)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within it the original values are in place; then what was written."""
        live = self._live()
        written = {key: live[key].clone() for key in self.replaced}
        self.restore()
        try:
            yield
        finally:
            self.write(written)

    def _live(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())


_REPLACED: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
