"""Expert banks in the format of the released PPAP checkpoints.

riiid/PPAP saves every expert as the full state dict of its adapted network, in one file per
noise range (``0_max5.ckpt``, ..., ``4_max5.ckpt``). Adapted layers are wrapped: the layer itself
is ``conv`` or ``linear`` below its old name, beside ``lora_A`` and ``lora_B`` in loralib's form,
unmerged. ResNets lie below ``resnet.``, vision transformers below ``deit.classifier.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.bank import ExpertBank
from ppap.experts.merging import WrittenWeights
from ppap.experts.routing import NoiseRanges
from ppap.files.checkpoints import CheckpointError, check_state, load_state
from ppap.predictors.predictor import Predictor

__all__ = ["load_released", "released_state", "save_released"]

NAME = re.compile(r"(\d+)_max(\d+)\.(?:ckpt|pt|pth)")
RESNET, DEIT = "resnet.", "deit.classifier."
DEIT_LAYER = "blocks.0.attn.qkv.weight"
WRAPPED = re.compile(r"(.*)\.(conv|linear)\.(weight|bias)")
SOURCE = "https://github.com/riiid/PPAP"


def load_released(
    folder: str | Path,
    predictor: Predictor,
    rank: int = 16,
    alpha: float = 8.0,
    steps: int = 1000,
    as_trained: bool = True,
    normalised: bool | None = None,
) -> ExpertBank:
    """The experts of a folder of released checkpoints.

    Args:
        folder: holds ``<n>_max<N>.ckpt`` for every n from 0, low noise, to N - 1.
        predictor: of the very base weights they were trained on: torchvision's ResNet50
            ``IMAGENET1K_V2`` (``timm/resnet50.tv2_in1k``), timm's ``deit_small_patch16_224``.
        rank: they were trained with.
        alpha: likewise; numerator of the scaling.
        steps: length of the noise schedule.
        as_trained: whether LoRA of linear layers goes without alpha / rank, as their training did
            (``Lora.linear_scaling``).
        normalised: whether the experts see normalised images; None takes what the released
            training and sampling show them: raw [-1, 1] to ResNets, and normalised images to
            DeiTs, whose wrapper normalises.

    Returns:
        The bank, in evaluation mode. Unlike the released sampler it guides a timestep on a
        boundary by the upper expert, which trained there.

    Raises:
        CheckpointError: if a file is missing, damaged, hostile, or of another network, rank or
            base weights.
    """
    folder = Path(folder)
    files = _files(folder)
    lora = Lora(rank, alpha, linear_scaling="published" if as_trained else "corrected")
    adapter = Adapter((lora, Biases(), Norms()))
    ranges = NoiseRanges.equal(len(files), steps)
    states = [_unwrapped(load_state(path)) for path in files]
    base = predictor.network.state_dict()
    originals = WrittenWeights(predictor.network).originals()  # if another bank is merged
    base |= {key: originals[key] for key in base.keys() & originals.keys()}
    if normalised is None:
        normalised = DEIT_LAYER in base
    bank = ExpertBank(predictor, ranges, adapter, normalised=normalised)
    for number, (path, state) in enumerate(zip(files, states, strict=True)):
        expert = bank.expert(number)
        own = expert.tensors() | expert.statistics()
        check_state({**base, **own}, state, path.name)
        changed = [
            key for key, value in base.items()
            if key not in own and not torch.equal(state[key].to(value), value)
        ]  # fmt: skip
        if changed:
            raise CheckpointError(
                f"{path.name} was trained on other base weights ({changed[0]} and "
                f"{len(changed) - 1} more differ); load the predictor that {SOURCE} names"
            )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])
    return bank.eval()


def save_released(bank: ExpertBank, folder: str | Path) -> None:
    """Write ``<n>_max<N>.ckpt`` as the released code does.

    Raises:
        ValueError: for a bank whose adapter or network the format does not know.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(bank)):
        torch.save(released_state(bank, number), folder / f"{number}_max{len(bank)}.ckpt")


def released_state(bank: ExpertBank, number: int) -> dict[str, Tensor]:
    """The state dict of one expert as the released code has it.

    Raises:
        ValueError: as :func:`save_released`.
    """
    parts = bank.adapter.parts
    known = all(isinstance(part, Lora | Biases | Norms) for part in parts)
    if bank.absorbed or not known or sum(isinstance(part, Lora) for part in parts) > 1:
        raise ValueError(
            "the released format holds one LoRA of loralib's, biases and norms with statistics; "
            f"this bank has {bank.adapter}" + " and absorbed its statistics" * bank.absorbed
        )
    base = bank.predictor.network.state_dict() | bank.overwritten
    expert = bank.expert(number)
    state = base | expert.tensors() | expert.statistics()
    prefix = DEIT if DEIT_LAYER in base else RESNET if "conv1.weight" in base else ""
    if not prefix:
        raise ValueError(
            "the released format is of ResNets and vision transformers by timm's names"
        )
    adapted = {key.rpartition(".")[0] for key in state if key.endswith(".lora_A")}
    written = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in adapted and leaf in ("weight", "bias"):
            kind = "conv" if base[f"{layer}.weight"].ndim == 4 else "linear"
            leaf = f"{kind}.{leaf}"
        written[f"{prefix}{layer}.{leaf}" if layer else prefix + leaf] = value.detach().cpu()
    return written


def _files(folder: Path) -> list[Path]:
    found = {
        (int(match[2]), int(match[1])): path
        for path in sorted(folder.glob("*"))
        if (match := NAME.fullmatch(path.name))
    }
    counts = sorted({count for count, _ in found})
    if len(counts) != 1:
        raise CheckpointError(
            f"{folder} holds checkpoints of {counts or 'no'} experts; expected 0_max5.ckpt, "
            "1_max5.ckpt, ... of one bank"
        )
    missing = [n for n in range(counts[0]) if (counts[0], n) not in found]
    if missing:
        raise CheckpointError(f"{folder} lacks {missing[0]}_max{counts[0]}.ckpt")
    return [found[counts[0], n] for n in range(counts[0])]


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the bare network, LoRA tensors beside their layers' weights."""
    found = {}
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    plain = {key.removeprefix(RESNET).removeprefix(DEIT): value for key, value in plain.items()}
    for key, value in plain.items():
        match = WRAPPED.fullmatch(key)
        inside = match is not None and f"{match[1]}.lora_A" in plain
        found[f"{match[1]}.{match[3]}" if match and inside else key] = value
    return found
