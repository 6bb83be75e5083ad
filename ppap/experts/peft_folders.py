"""Expert banks as folders of Hugging Face peft, one for each expert."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppap.compute.agreement import agree, joined
from ppap.compute.copies import own_copy
from ppap.compute.stateless import run_with
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.files.checkpoints import one_line

__all__ = ["save_peft"]

UNKNOWN_SIZES = (64, 224, 32, 28, 256, 384, 512, 16, 8, 299, 96, 128, 336, 448)
"""Sides of the images on which a predictor that does not say its size is tried, until one fits."""


def save_peft(bank: ExpertBank, folder: str | Path) -> None:
    """Write ``expert_<n>/`` that ``peft.PeftModel.from_pretrained(network, ...)`` loads.

    loralib's update of a k x k convolution has rank k^2 r at most as peft counts, so that peft
    gets it exactly, with k^2 times the rank and the same scaling; of a convolution in groups, with
    as many ranks as it has outputs. Biases go by peft's ``bias="all"``, norms with their statistics
    as modules to save.

    Raises:
        ValueError: for a bank whose adapter peft has no form for, a tensor that it does not save,
            such as the bias within attention, or a layer on which it computes something else, such
            as a dilated convolution. Nothing is written then.
    """
    folder = Path(folder)
    for number in range(len(bank)):
        model = _peft_model(bank, number)
        if number == 0:
            _check_layers(model, bank)
        model.save_pretrained(str(folder / f"expert_{number}"))


def _peft_model(bank: ExpertBank, number: int) -> Any:
    import peft

    network = own_copy(bank.predictor.network)
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        for key, value in bank.overwritten.items():
            state[key].copy_(value)
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
    _check_saved(model, state.keys() & (own | expert.statistics()).keys())
    return model


def _check_saved(model: Any, own: Iterable[str]) -> None:
    """Look whether peft saves what an expert has in place of the network's own tensors."""
    import peft

    saved = {_plain(key) for key in peft.get_peft_model_state_dict(model)}
    lost = sorted(set(own) - saved)
    if lost:
        raise ValueError(f"peft does not save {', '.join(lost)}; save the bank itself")


def _plain(key: str) -> str:
    """The name of a tensor of the network itself, in the bare network."""
    plain = key.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    return plain.replace(".base_layer.", ".")


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
        layer, lora = dict(network.named_modules()).get(name), adapter.lora_of(name)
        weight = getattr(layer, "weight", None)
        if weight is None:
            raise ValueError(f"peft has no form for {name} of attention; save the bank itself")
        if type(layer) is nn.Embedding:
            raise ValueError(
                f"peft has no form for {name}, an embedding that shares its weight with an adapted "
                "layer; save the bank itself"
            )
        assert lora is not None
        groups = int(getattr(layer, "groups", 1))
        if groups > 1:
            down, up = _grouped_convolutions(down, up, weight, groups)
        elif weight.ndim > 2:
            down, up = _convolutions(down, up, weight)
        elif type(layer).__name__ == "Conv1D":  # whose weight peft takes the other way round
            down, up = up.T, down.T
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
    o k + k - 1 of B A one after another: row a takes slot a of the weight's in k^2 values. Of
    another kernel, the first k is its first side and the second the product of the others.
    """
    outputs, inputs, side, *others = weight.shape
    rank = len(down)
    spread = torch.zeros(side, rank, side, down.shape[1], dtype=down.dtype)
    for slot in range(side):
        spread[slot, :, slot] = down.detach().cpu()
    first = spread.reshape(side * rank, inputs, side, *others)
    second = up.detach().cpu().reshape(outputs, side * rank, *[1] * (weight.ndim - 2))
    return first, second


def _grouped_convolutions(
    down: Tensor, up: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """loralib's pair as a convolution that is its whole update, and one that hands it on.

    peft's first convolution sees the inputs of all groups, its second keeps to groups.
    """
    outputs, inputs, *kernel = weight.shape
    update = (up @ down).detach().cpu().view(groups, outputs // groups, inputs, *kernel)
    first = torch.zeros(groups, outputs // groups, groups, inputs, *kernel, dtype=update.dtype)
    for group in range(groups):
        first[group, :, group] = update[group]
    second = torch.eye(outputs // groups, dtype=update.dtype).repeat(groups, 1)
    first = first.reshape(outputs, groups * inputs, *kernel)
    return first, second.view(*second.shape, *[1] * len(kernel))


@torch.no_grad()
def _check_layers(model: Any, bank: ExpertBank) -> None:
    """Run each layer that peft wraps beside the bank's own.

    Raises:
        ValueError: for one that differs.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = bank.merged(0)
    generator = torch.Generator().manual_seed(0)
    for path, layer in model.named_modules():
        name = path.removeprefix("base_model.model.")
        if not isinstance(layer, BaseTunerLayer) or f"{name}.weight" not in merged:
            continue
        own = bank.predictor.network.get_submodule(name)
        weight = merged[f"{name}.weight"]
        x = torch.randn(_input_shape(own, weight), generator=generator).to(weight)
        state = {leaf: merged[f"{name}.{leaf}"] for leaf, _ in own.named_parameters(recurse=False)}
        try:
            same = agree(cast(Any, layer).eval()(x), run_with(own, state, x), differing=0.0)
        except Exception as error:
            raise ValueError(
                f"peft cannot run its layer {name} ({one_line(error)}); save the bank itself"
            ) from error
        if not same:
            raise ValueError(
                f"peft computes something else than the bank in {name}, {own}; save the bank itself"
            )
    _check_network(model, bank, merged)


def _check_network(model: Any, bank: ExpertBank, merged: Mapping[str, Tensor]) -> None:
    """Run the whole, for a network may read a layer's weight instead of calling it."""
    network = bank.predictor.network.eval()
    for inputs in _inputs(bank):
        try:
            expected = run_with(network, merged, inputs)
        except Exception:  # noqa: BLE001, S112 a network of another size
            continue
        found, wanted = (joined(part, len(inputs)) for part in (model.eval()(inputs), expected))
        if not agree(found, wanted):
            raise ValueError(
                f"peft computes something else than the bank with {type(network).__name__}, which "
                "does not call all of the adapted layers; save the bank itself"
            )
        return
    raise ValueError(
        f"{type(network).__name__} runs with none of the usual sizes of images, so that what peft "
        "makes of it cannot be looked at; tell its size: Predictor(..., size=(H, W))"
    )


def _inputs(bank: ExpertBank) -> Iterator[Tensor]:
    """Batches of two images as the network takes them."""
    predictor, generator = bank.predictor, torch.Generator().manual_seed(0)
    sizes = [(side, side) for side in UNKNOWN_SIZES]
    for size in sizes if predictor.size is None else [predictor.size]:
        images = torch.randn(2, predictor.mean.shape[1], *size, generator=generator)
        yield predictor.prepare(images.to(predictor.mean), bank.normalised)


def _input_shape(layer: nn.Module, weight: Tensor) -> list[int]:
    if weight.ndim == 2:
        return [2, getattr(layer, "in_features", weight.shape[0])]
    sides = zip(weight.shape[2:], cast(Any, layer).dilation, strict=True)
    inputs = weight.shape[1] * int(cast(Any, layer).groups)
    return [2, inputs, *(dilation * (side - 1) + 5 for side, dilation in sides)]


@torch.no_grad()
def _fill(model: Any, values: Mapping[str, Tensor]) -> None:
    """Write values into a peft model by the names of the bare network or of peft's parts."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".original_module." in key:
            continue
        tensors[_plain(key)] = tensor
    for key, value in values.items():
        tensors[key].copy_(value)
