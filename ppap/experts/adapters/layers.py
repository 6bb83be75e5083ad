"""Which layers are adapted: by regular expressions for their names, or found by themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from ppap.predictors.wrappers import plain_name

__all__ = [
    "ATTENTION_LORA_LAYERS",
    "AUTO",
    "DEEPLAB_LORA_LAYERS",
    "DPT_LORA_LAYERS",
    "HEAD_LAYERS",
    "MIDAS_LORA_LAYERS",
    "PPAP_LORA_LAYERS",
    "PPAP_NORM_LAYERS",
    "PPAP_NO_BIAS",
    "SEGFORMER_LORA_LAYERS",
    "AdaptableWeight",
    "adaptable_weights",
    "check_pattern",
    "matching_weights",
    "weight_name",
]

AUTO = "auto"
"""In place of a regular expression: the projections of attention, the MLPs and the convolutions of
any network. These are all linear layers and convolutions but depthwise ones, which hold next to
nothing, and the last layer of a classifier."""

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
CLASSIFIER = r"(^|\.)(fc|heads?|head_dist|(\w+_)?classifier|logits)(\.|$)"
"""Layers at the end of classifiers of timm, torchvision and transformers."""
ENDING = re.compile(r"(^|[._])weight$")
ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class AdaptableWeight:
    """The weight of a linear layer, of attention or of a convolution.

    Attributes:
        name: the layer's; of a weight that is not its layer's only one, such as ``in_proj_weight``
            of :class:`torch.nn.MultiheadAttention`, the weight's own without ``_weight``. Of one
            that the network first has by another name, such as ``codes``, that name.
        layer: what holds it.
        weight: (out, in), or (out, in / groups, ...) of a convolution.
        groups: of a convolution, else 1.
    """

    name: str
    layer: nn.Module
    weight: Tensor
    groups: int

    @property
    def called(self) -> bool:
        """Whether its layer is called, where attention reads the weights of its parts."""
        return not isinstance(self.layer, nn.MultiheadAttention | NonDynamicallyQuantizableLinear)


def weight_name(weights: Container[str], name: str) -> str:
    """The weight that an :attr:`AdaptableWeight.name` is of, among a network's parameters."""
    known = (f"{name}.weight" if name else "weight", f"{name}_weight")
    return next((found for found in known if found in weights), name)


def check_pattern(pattern: str) -> None:
    """Look whether names of layers can be searched by a pattern.

    Raises:
        ValueError: if it is no regular expression.
    """
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{pattern!r} is no regular expression for layers ({error})") from error


def adaptable_weights(network: nn.Module) -> list[AdaptableWeight]:
    """All weights of linear layers, attention and convolutions, each once.

    A weight that several layers share goes by the first of its names. One that is computed from
    others, as by a parametrisation, is not there.
    """
    names = {id(weight): name for name, weight in network.named_parameters()}
    found: dict[int, AdaptableWeight] = {}
    for layer in network.modules():
        leaves = ATTENTION_WEIGHTS if isinstance(layer, nn.MultiheadAttention) else ("weight",)
        for weight in (layer._parameters.get(leaf) for leaf in leaves if _is_adaptable(layer)):
            if weight is not None and not isinstance(weight, UninitializedParameter):
                name = ENDING.sub("", names[id(weight)])
                groups = int(getattr(layer, "groups", 1))
                found.setdefault(id(weight), AdaptableWeight(name, layer, weight, groups))
    return list(found.values())


def matching_weights(network: nn.Module, pattern: str) -> list[AdaptableWeight]:
    """The adaptable weights whose name a regular expression finds, or those of :data:`AUTO`.

    Names are those in the network within, if one computes in mixed precision.

    Raises:
        ValueError: if there is none, or for a layer whose weight is computed from others.
    """
    every = adaptable_weights(network)
    if pattern == AUTO:
        found = [about for about in every if about.groups == 1 or about.weight.shape[1] > 1]
        heads = _heads(network, found)
        last = heads[-1].layer if heads else None
        if isinstance(last, nn.Linear):  # and what is beside it, as in a distilled DeiT
            last_of = [about for about in heads if len(about.weight) == last.out_features]
            found = [about for about in found if about not in last_of]
    else:
        for name, layer in network.named_modules():
            if (
                _is_adaptable(layer)
                and _is_computed(layer)
                and re.search(pattern, plain_name(network, name))
            ):
                raise ValueError(
                    f"the weight of {name} is computed from others (a parametrisation or weight "
                    "normalisation), so that it cannot be adapted; remove that first "
                    "(torch.nn.utils.parametrize.remove_parametrizations), or leave the layer out"
                )
        found = [about for about in every if re.search(pattern, plain_name(network, about.name))]
    if not found:
        names = [about.name or "the network itself" for about in every]
        mend = f"layers={AUTO!r} finds them by itself"
        if pattern == AUTO:
            mend = "the last one, and those whose weight is computed, are left out; adapt others, "
            mend += "such as by ppap.full_adapter()"
        raise ValueError(
            f"no linear or convolutional layer of {type(network).__name__} matches {pattern!r}; "
            f"its layers are {', '.join([*names[:6], '...']) if names else 'none'}; {mend}"
        )
    return found


def _heads(network: nn.Module, found: Sequence[AdaptableWeight]) -> list[AdaptableWeight]:
    """Those at the end of a classifier, by their names.

    Layers within blocks may have such names, too, as ``blocks.0.attn.fc``: they are followed by one
    that is nested less deep and has none, as ``out``.
    """
    heads: list[AdaptableWeight] = []
    outermost = math.inf
    for about in reversed(found):
        depth = about.name.count(".")
        if not re.search(CLASSIFIER, plain_name(network, about.name)):
            outermost = min(outermost, depth)
        elif depth <= outermost:
            heads.insert(0, about)
    return heads


def _is_adaptable(layer: nn.Module) -> bool:
    """Also of transformers' own ``Conv1D``, a linear layer with its weight the other way round."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    return isinstance(layer, kinds) or type(layer).__name__ == "Conv1D"


def _is_computed(layer: nn.Module) -> bool:
    return "weight" not in layer._parameters and not isinstance(layer, nn.MultiheadAttention)
