"""Networks from folders of transformers: config and weights checked, no code of theirs run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap.files.checkpoints import (
    CheckpointError,
    check_values,
    load_state,
    misfit,
    one_line,
)
from ppap.files.hub import extra, hub_folder, no_bars, quiet, read_settings

__all__ = ["EMBEDDERS", "SETTINGS_FILES", "load_network", "settle"]

PREDICTORS = ("ForDepthEstimation", "ForImageClassification", "ForSemanticSegmentation")
"""How names of architectures end that predict something."""
EMBEDDERS = ("CLIPModel", "SiglipModel")
"""Architectures that embed both images and text."""
SETTINGS_FILES = ("*.json", "*.txt", "*.model")
WEIGHTS = {
    "model.safetensors": "model-*.safetensors",
    "pytorch_model.bin": "pytorch_model-*.bin",
}
"""Files and, where they are cut up, their shards, in the order in which they are looked for."""
NOT_SETTINGS = (
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "return_dict",
    "use_return_dict",
)
"""Entries of a config that name code or kernels to run, another kind of weights, or another form
of what is predicted."""


def load_network(source: str | Path, folder: Path) -> tuple[Any, list[str]]:
    """The network in a folder, and the names of weights that its file lacks."""
    transformers = extra("transformers")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; give a model of transformers")
    settings = read_settings(folder / "config.json")
    kind = _kind(source, settings, transformers)
    state = _weights(source, folder)
    try:
        with quiet("transformers.modeling_utils"), quiet("transformers.distributed"), no_bars():
            network, found = kind.from_pretrained(
                None,  # so that transformers itself reads no file of the folder's
                config=kind.config_class.from_dict(_plain(settings)),
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(
            f"{source}: the config is damaged, or the weights are of another network "
            f"({one_line(error)}); fetch them again"
        ) from error
    wrong = [
        entry
        if isinstance(entry, str)
        else f"{entry[0]} {tuple(entry[1])} instead of {tuple(entry[2])}"
        for entry in found["mismatched_keys"]  # transformers 4 gives names alone
    ]
    if problems := misfit([], sorted(found["unexpected_keys"]), wrong):
        raise CheckpointError(f"{source} does not fit its own config: {problems}; fetch it again")
    own = {key for key, value in network.state_dict().items() if value.is_floating_point()}
    weights = {k: value for k, value in state.items() if k in own or value.is_floating_point()}
    check_values(weights, str(source))
    return network, sorted(found["missing_keys"])


def _kind(source: str | Path, settings: Mapping[str, Any], transformers: Any) -> Any:
    """The class that the config names, if it is one that predicts something."""
    names = settings.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not (name.endswith(PREDICTORS) or name in EMBEDDERS):
        endings = ", ".join(f"...{ending}" for ending in PREDICTORS)
        raise CheckpointError(
            f"{source} holds a {name}; what can be used is {endings}, {', '.join(EMBEDDERS)}"
        )
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise CheckpointError(
            f"{source} holds a {name}, which transformers {transformers.__version__} does not "
            "know; another version may"
        )
    return kind


def _plain(settings: Any) -> Any:
    """Settings without what would make transformers run or expect something else."""
    if not isinstance(settings, dict):
        return settings
    return {key: _plain(value) for key, value in settings.items() if key not in NOT_SETTINGS}


def _weights(source: str | Path, folder: Path) -> dict[str, Tensor]:
    for file, shards in WEIGHTS.items():
        hub_folder(source, [file, shards], nested=False)
        index = folder / f"{file}.index.json"
        if (folder / file).is_file():
            return load_state(folder / file)
        if index.is_file():
            names = {Path(shard).name for shard in read_settings(index)["weight_map"].values()}
            parts = [load_state(folder / name) for name in sorted(names)]
            return {key: value for part in parts for key, value in part.items()}
    raise CheckpointError(f"{source} has neither {' nor '.join(WEIGHTS)}; its weights are missing")


def settle(
    source: str | Path, network: nn.Module, missing: Sequence[str], predict: Callable[[], Tensor]
) -> None:
    """Refuse a network that lacks weights, unless its prediction does without; those become 0."""
    tensors = network.state_dict()
    whole = sdpa_kernel(SDPBackend.MATH)  # that of CPUs gives 0 for NaN among few tokens
    lacking = [name for name in missing if tensors[name].is_floating_point()]  # others are computed
    with torch.no_grad(), whole:
        for name in lacking:
            tensors[name].fill_(torch.nan)
        if lacking and not predict().isfinite().all():
            raise CheckpointError(
                f"{source} does not fit its own config: {misfit(lacking, [], [])}; fetch it again"
            )
        for name in lacking:
            tensors[name].zero_()
