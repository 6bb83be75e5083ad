"""Expert banks as folders of Hugging Face peft, one for each expert."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank

__all__ = ["save_peft"]


def save_peft(bank: ExpertBank, folder: str | Path) -> None:
    """Write ``expert_<n>/`` that ``peft.PeftModel.from_pretrained(network, ...)`` loads.

    loralib's update of a k x k convolution has rank k^2 r at most as peft counts, so that peft
    gets it exactly, with k^2 times the rank and the same scaling. Biases go by peft's
    ``bias="all"``, norms with their statistics as modules to save.

    Raises:
        ValueError: for a bank whose adapter peft has no form for.
    """
    folder = Path(folder)
    for number in range(len(bank)):
        _peft_model(bank, number).save_pretrained(str(folder / f"expert_{number}"))


def _peft_model(bank: ExpertBank, number: int) -> Any:
    import peft

    network = copy.deepcopy(bank.predictor.network)
    with torch.no_grad():
        for key, value in bank.overwritten.items():
            network.get_parameter(key).copy_(value)
    expert = bank.expert(number)
    own = expert.tensors()
    norms = sorted(
        {
            key.rpartition(".")[0]
            for key in (*own, *expert.statistics())
            if isinstance(_layer(network, key), _BatchNorm | nn.LayerNorm | nn.GroupNorm)
        }
    )
    method = next((part for part in bank.adapter.parts if isinstance(part, Peft)), None)
    parts = tuple(part for part in bank.adapter.parts if part is not method)
    if not all(isinstance(part, Lora | Biases | Norms) for part in parts):
        raise ValueError(f"peft has no form for {bank.adapter}; save the bank itself")
    if any(isinstance(part, Lora) for part in parts):
        config, own = _lora_config(network, bank.adapter, own)
    elif method is not None:
        config = method.config(network)
    else:
        raise ValueError(f"peft has no form for {bank.adapter}; save the bank itself")
    loose = any(
        key.endswith("bias") and key.rpartition(".")[0] not in norms for key in expert.tensors()
    )
    if loose and not isinstance(config, peft.LoraConfig):
        raise ValueError("peft saves biases with LoRA alone; save the bank itself")
    if isinstance(config, peft.LoraConfig) and loose:
        config.bias = "all"
    config.modules_to_save = norms or None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(cast(Any, network), config)
    _fill(model, own | expert.statistics())
    return model


def _layer(network: nn.Module, key: str) -> nn.Module | None:
    """The layer of a tensor that the network itself has."""
    path, _, leaf = key.rpartition(".")
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return None
    return layer if hasattr(layer, leaf) else None


def _lora_config(
    network: nn.Module, adapter: Adapter, own: Mapping[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """peft's settings, and the tensors with LoRA's in peft's form and by peft's names."""
    import peft

    converted, ranks, alphas = dict(own), {}, {}
    for key in [key for key in own if key.endswith(".lora_A")]:
        name = key.removesuffix(".lora_A")
        down, up = converted.pop(key), converted.pop(f"{name}.lora_B")
        weight, lora = network.get_submodule(name).weight, adapter.lora_of(name)
        assert isinstance(weight, Tensor)
        assert lora is not None
        if weight.ndim == 4:
            down, up = _convolutions(down, up, weight)
        ranks[name] = len(down)
        alphas[name] = lora.scale(weight) * len(down)
        converted |= {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
    pattern = "|".join(re.escape(name) for name in ranks)
    config = peft.LoraConfig(
        target_modules=pattern,
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
        alpha_pattern=cast(Any, {f"^{re.escape(name)}": value for name, value in alphas.items()}),
    )
    return config, converted


def _convolutions(down: Tensor, up: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """loralib's pair as a k x k convolution and a 1 x 1 one.

    With A: (r k, in k) and B: (out k, r k), the update of output o is the rows o k to
    o k + k - 1 of B A one after another: row a takes slot a of the weight's in k^2 values.
    """
    outputs, inputs, kernel, _ = weight.shape
    rank = len(down)
    spread = torch.zeros(kernel, rank, kernel, inputs * kernel, dtype=down.dtype)
    for slot in range(kernel):
        spread[slot, :, slot] = down.detach().cpu()
    first = spread.reshape(kernel * rank, inputs, kernel, kernel)
    second = up.detach().cpu().reshape(outputs, kernel * rank, 1, 1)
    return first, second


@torch.no_grad()
def _fill(model: Any, values: Mapping[str, Tensor]) -> None:
    """Write values into a peft model by the names of the bare network or of peft's parts."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".original_module." in key:
            continue
        plain = key.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        tensors[plain.replace(".base_layer.", ".")] = tensor
    for key, value in values.items():
        tensors[key].copy_(value)
