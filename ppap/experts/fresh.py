"""Experts before their training: what a bank starts with, and returns to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ppap.experts.absorb import absorbed
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.expert import Expert

__all__ = ["fresh_experts"]


def fresh_experts(
    adapter: Adapter, network: nn.Module, count: int, seed: int, absorb: bool = False
) -> Iterator[Expert]:
    """Experts that leave a network as it is; the same at every call.

    Args:
        adapter: of all experts.
        network: the frozen predictor's, with nothing merged into it.
        count: of experts.
        seed: of the adapters' random initial values.
        absorb: whether batch statistics are absorbed.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        expert = Expert(adapter.create(network, generator), adapter.buffers(network))
        yield absorbed(expert, network) if absorb else expert
