"""Every kind of adapter that the sweeps compare, each with the learning rate that suits it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ablations.sweeps.recipes import FULL, LORA, FineTuning
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Head, Norms
from ppap.experts.adapters.peft import Peft

__all__ = ["FINE_TUNINGS"]

PEFT_KINDS: dict[str, tuple[Any, float, float]] = {
    "LoRA (loralib conv)": (Lora(4, 2.0), 1e-2, 1e-2),
    "LoRA (peft conv)": (Peft("lora", 4, 2.0), 1e-2, 1e-2),
    "rsLoRA": (Peft("rslora", 4, 2.0), 1e-2, 1e-2),
    "DoRA": (Peft("dora", 4, 2.0), 1e-2, 1e-2),
    "IA3": (Peft("ia3"), 1e-1, 3e-2),
    "LoHa": (Peft("loha", 4, 2.0), 3e-2, 3e-2),
    "LoKr": (Peft("lokr", 4, 2.0), 3e-2, 3e-2),
    "OFT": (Peft("oft", 4), 3e-2, 3e-2),
    "BOFT": (Peft("boft", 4), 3e-2, 3e-2),
}
"""Adapter, learning rate alone, learning rate with norms and biases: the best of 1e-3, 3e-3,
1e-2, 3e-2 and 1e-1 by accuracy on noisy images that no row is measured on, for a seed that no
row has. One rate for all would favour the methods it happens to suit."""


def _fine_tunings() -> Iterator[tuple[str, FineTuning, str]]:
    """(name, tuning, whether norms and biases are trained too)."""
    yield "full", FULL, "with"
    yield "last layer", FineTuning("last layer", Adapter((Head(),)), 1e-1), "without"
    yield "bias", FineTuning("bias", Adapter((Biases(),)), 1e-1), "without"
    yield "norm", FineTuning("norm", Adapter((Norms(),)), 3e-2), "without"
    for name, (part, alone, joined) in PEFT_KINDS.items():
        yield name, FineTuning(name, Adapter((part,)), alone), "without"
        both = FineTuning(f"{name}, bias, norm", Adapter((Biases(), Norms(), part)), joined)
        yield name, LORA if part == Lora(4, 2.0) else both, "with"


FINE_TUNINGS = tuple(_fine_tunings())
"""(name, fine-tuning, ``\"with\"`` or ``\"without\"`` norms and biases) of each."""
