"""Adapters: what is trained per noise range, of parts of our own and of peft's."""

from ppap.experts.adapters.adapter import Adapter, full_adapter, ppap_adapter
from ppap.experts.adapters.layers import (
    ATTENTION_LORA_LAYERS,
    DEEPLAB_LORA_LAYERS,
    DPT_LORA_LAYERS,
    MIDAS_LORA_LAYERS,
    PPAP_LORA_LAYERS,
    SEGFORMER_LORA_LAYERS,
    matching_layers,
)
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Full, Head, Norms, Part
from ppap.experts.adapters.student import Student

__all__ = [
    "ATTENTION_LORA_LAYERS",
    "DEEPLAB_LORA_LAYERS",
    "DPT_LORA_LAYERS",
    "MIDAS_LORA_LAYERS",
    "PPAP_LORA_LAYERS",
    "SEGFORMER_LORA_LAYERS",
    "Adapter",
    "Biases",
    "Full",
    "Head",
    "Lora",
    "Norms",
    "Part",
    "Student",
    "full_adapter",
    "matching_layers",
    "ppap_adapter",
]
