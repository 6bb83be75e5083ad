"""Which layers are adapted: regular expressions for the names of public networks' layers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

__all__ = [
    "ATTENTION_LORA_LAYERS",
    "DEEPLAB_LORA_LAYERS",
    "DPT_LORA_LAYERS",
    "HEAD_LAYERS",
    "MIDAS_LORA_LAYERS",
    "PPAP_LORA_LAYERS",
    "PPAP_NORM_LAYERS",
    "PPAP_NO_BIAS",
    "SEGFORMER_LORA_LAYERS",
    "matching_layers",
]

PPAP_LORA_LAYERS = r"(^|\.)(conv[12]|attn\.qkv|attn\.proj)$"
"""What the released code adapts: stem, conv1 and conv2 of ResNets, attention of timm's DeiTs."""
DEEPLAB_LORA_LAYERS = r"(^|\.)conv[12]$|(^|\.)(aux_)?classifier\."
"""Of torchvision's DeepLabV3 on a ResNet: the encoder's conv1 and conv2, all of the decoder."""
MIDAS_LORA_LAYERS = r"(^|\.)(conv_pw|layer[1-4]_rn)$|(^|\.)refinenet[1-4]\."
"""Of MiDaS v2.1 small, as in the released code."""
ATTENTION_LORA_LAYERS = r"(^|\.)(query|key|value|[qkvo]_proj|out_proj|attention\.output\.dense)$"
"""Of transformers' vision models, CLIP among them: attention, as in a DeiT of timm."""
DPT_LORA_LAYERS = (
    ATTENTION_LORA_LAYERS
    + r"|(^|\.)conv[12]$|(^|\.)neck\.(convs\.|fusion_stage\.layers\.(?!0\.residual_layer1))"
)
"""Of transformers' DPT and Depth Anything: the encoder's attention, a hybrid's conv1 and conv2, and
the decoder but for the layers of its first fusion that no prediction uses."""
SEGFORMER_LORA_LAYERS = ATTENTION_LORA_LAYERS + r"|(^|\.)decode_head\."
"""Of transformers' SegFormer: the encoder's attention, all of the decoder."""
PPAP_NORM_LAYERS = r"(^|\.)bn\d+$"
"""Batch norms of ResNets, those of down-sampling shortcuts left out, as in the released code."""
PPAP_NO_BIAS = r"(^|\.)fc\.bias$"
"""Biases that stay frozen in the released code."""
HEAD_LAYERS = r"(^|\.)(fc|head)$"
"""The last layer of timm's and torchvision's ResNets and vision transformers."""


def matching_layers(
    network: nn.Module, pattern: str
) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear and convolutional layers whose name a regular expression finds.

    Raises:
        ValueError: if there is none.
    """
    found = False
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and re.search(pattern, name):
            found = True
            yield name, layer
    if not found:
        kinds = (nn.Linear, nn.Conv2d)
        names = [name for name, layer in network.named_modules() if isinstance(layer, kinds)]
        raise ValueError(
            f"no linear or convolutional layer of {type(network).__name__} matches {pattern!r}; "
            f"its layers are {', '.join([*names[:6], '...']) if names else 'none'}"
        )
