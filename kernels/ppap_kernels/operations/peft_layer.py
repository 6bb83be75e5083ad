"""peft's layer, a rival of the operations on linear layers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from ppap_kernels.operations.description import Tensors

__all__ = ["peft_layer"]

_LAYERS: dict[tuple[int, int], nn.Module] = {}


def peft_layer(t: Tensors) -> Any:
    """peft's layer around these tensors; made once, for its making is not what is timed."""
    from peft import LoraConfig, inject_adapter_in_model

    key = t["w"].data_ptr(), t["a"].data_ptr()
    if key not in _LAYERS:
        outer, inner = t["w"].shape
        rank = t["a"].shape[-2]
        holder = nn.Module()
        holder.base = nn.Linear(inner, outer, device=t["w"].device, dtype=t["w"].dtype)
        holder.base.weight, holder.base.bias = nn.Parameter(t["w"]), nn.Parameter(t["bias"])
        config = LoraConfig(r=rank, lora_alpha=rank // 2, target_modules=["base"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several adapters are meant
            for number in range(len(_each(t["a"]))):
                inject_adapter_in_model(config, holder, adapter_name=str(number))
        layer: Any = holder.base
        for number, (a, b) in enumerate(zip(_each(t["a"]), _each(t["b"]), strict=True)):
            layer.lora_A[str(number)].weight = _as_parameter(a)
            layer.lora_B[str(number)].weight = _as_parameter(b)
        _LAYERS.clear()
        _LAYERS[key] = layer.eval()
    return _LAYERS[key]


def _each(stack: Tensor) -> list[Tensor]:
    return list(stack) if stack.ndim == 3 else [stack]


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
