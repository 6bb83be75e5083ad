"""How much of a network an adapter reaches, said once for each bank."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.layers import AUTO, PPAP_LORA_LAYERS, adaptable_weights, matching_weights
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Full
from ppap.experts.adapters.peft import Peft

__all__ = ["Coverage", "default_adapter", "report_coverage"]

TINY = 0.1
"""Share of a network's weights below which an adapter of layers is warned of."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """Which of a network's linear layers, attention and convolutions are adapted.

    Attributes:
        adapted: how many.
        layers: of how many.
        share: of their weights that the adapted ones hold, from 0 to 1.
    """

    adapted: int
    layers: int
    share: float

    @classmethod
    def of(cls, network: nn.Module, adapted: Iterable[str]) -> Coverage:
        """Of the layers of these names."""
        every = adaptable_weights(network)
        names = set(adapted)
        found = [about for about in every if about.name in names]
        total = sum(about.weight.numel() for about in every)
        held = sum(about.weight.numel() for about in found)
        return cls(len(found), len(every), held / total if total else 0.0)

    def __str__(self) -> str:
        return f"{self.adapted} of {self.layers} layers, {self.share:.0%} of their weights"


def default_adapter(network: nn.Module) -> Adapter:
    """The paper's adapter; for networks other than the paper's, with LoRA on layers found.

    The released code names the layers of ResNets and of timm's vision transformers. Where these
    names find next to nothing, as in most other families, LoRA goes to the attention, MLPs and
    convolutions (:data:`ppap.experts.adapters.layers.AUTO`).
    """
    try:
        named = [about.name for about in matching_weights(network, PPAP_LORA_LAYERS)]
    except ValueError:
        return ppap_adapter(layers=AUTO)
    tiny = Coverage.of(network, named).share < TINY
    return ppap_adapter(layers=AUTO) if tiny else ppap_adapter()


def report_coverage(network: nn.Module, adapter: Adapter) -> None:
    """Log what share of a network the low-rank or peft parts of an adapter reach.

    It is a warning where they reach next to nothing, and nothing else trains all weights.
    """
    parts = [part for part in adapter.parts if isinstance(part, Lora | Peft)]
    if not parts:
        return
    names = [about.name for part in parts for about in part.weights(network)]
    found, kind = Coverage.of(network, names), type(network).__name__
    if found.share < TINY and not any(isinstance(part, Full) for part in adapter.parts):
        logger.warning("the adapter reaches %s of %s; layers=%r finds more", found, kind, AUTO)
    else:
        logger.info("the adapter reaches %s of %s", found, kind)
