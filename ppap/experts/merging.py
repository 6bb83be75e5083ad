"""Merging: an expert's weights written into the frozen network, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["WrittenWeights"]


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
