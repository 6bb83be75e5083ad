"""Experts before their training: what a bank starts with, and returns to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ppap.experts.absorb import absorbed
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.expert import Expert
from ppap.predictors.predictor import Predictor

__all__ = ["check_adaptable", "fresh_experts"]

WHOLE = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
"""Modules that run with no other weights than their own."""


def check_adaptable(predictor: Any, adapter: Any) -> None:
    """Refuse a predictor whose network cannot run under experts, or has nothing to adapt.

    Args:
        predictor: a :class:`ppap.predictors.predictor.Predictor` is wanted.
        adapter: an :class:`ppap.experts.adapters.adapter.Adapter`, or None.

    Raises:
        TypeError: for a network that is not wrapped, or an adapter that is none.
        ValueError: for another that cannot be adapted, with the mend.
    """
    if not isinstance(predictor, Predictor):
        raise TypeError(
            "a bank adapts a ppap.Predictor(network, mean, std), which knows how its network is "
            f"shown images, got {type(predictor).__name__}"
        )
    if adapter is not None and not isinstance(adapter, Adapter):
        mend = "; put it into ppap.Adapter((part,))" if hasattr(adapter, "create") else ""
        raise TypeError(f"an adapter is such as ppap.ppap_adapter(rank=16), got {adapter!r}{mend}")
    network, kind = predictor.network, type(predictor.network).__name__
    if next(network.parameters(), None) is None:
        raise ValueError(
            f"{predictor.name} has no weights that experts could adapt; guide with it as it "
            "is (ppap.guidance.guides.naive_guide), or make its network a torch.nn.Module"
        )
    if any(isinstance(part, WHOLE) for part in network.modules()):
        raise ValueError(
            f"{kind} runs with no other weights than its own; give the bank the module within "
            "(network.module), or that which was scripted"
        )
    if any(isinstance(weight, UninitializedParameter) for weight in network.parameters()):
        raise ValueError(
            f"{kind} has lazy layers that were never called; call it once with an image"
        )


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
