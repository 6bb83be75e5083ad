"""Merging: the weights of a network under an expert, kept, or written into it and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ppap.compute.changes import Watch, marks

__all__ = ["MergedWeights", "WrittenWeights"]


class MergedWeights:
    """The merged weights of the expert that was used last, as long as nothing has changed."""

    def __init__(self) -> None:
        self._kept: tuple[int, dict[str, Tensor]] | None = None
        self._own = Watch()
        self._base: tuple[list[Tensor], list[tuple[int, int]]] = [], []

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
            own: its tensors; their values are looked at, so that no way to write is missed.
            base: the frozen network's; the counts of writes that PyTorch keeps are looked at,
                which a write through ``.data`` leaves as they are.
            merge: computes them.
        """
        seen = marks(base)
        changed = self._own.changed(lambda: own) or seen != self._base[1]
        if changed or self._kept is None or self._kept[0] != expert:
            # The tensors themselves are held, for a freed one's address could be another's.
            self._base = [tensor.detach() for tensor in base], seen
            self._kept = expert, merge()
        return self._kept[1]

    def forget(self) -> None:
        """Merge anew at the next call."""
        self._kept = None


class WrittenWeights:
    """Values written into a module in place, which remembers what they replaced.

    Args:
        module: whose parameters and buffers are overwritten.

    Attributes:
        replaced: the original values by name; empty when nothing is written.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.replaced: dict[str, Tensor] = {}

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters and buffers by name; what is there already is left alone."""
        live = self._live()
        for key, value in values.items():
            if value is not live[key]:
                self.replaced.setdefault(key, live[key].clone())
                live[key].copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the original values back, bit for bit."""
        live = self._live()
        for key, value in self.replaced.items():
            live[key].copy_(value)
        self.replaced = {}

    def _live(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())
