"""Depth, class, segmentation and CLIP models in the format of Hugging Face transformers.

A model is a folder, or a hub id, that holds ``config.json``, the preprocessor's settings and
weights: ``model.safetensors`` or, read weights-only, ``pytorch_model.bin``, whole or in shards.
No code of the folder's is ever run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.files.checkpoints import CheckpointError, load_state, misfit, one_line
from ppap.files.hub import extra, hub_folder, no_bars, quiet, read_settings
from ppap.predictors.predictor import Predictor, SelectOutput
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask

__all__ = ["ImageEmbedding", "load_transformers", "text_targets"]

OUTPUTS: dict[str, tuple[str, Task]] = {
    "ForDepthEstimation": ("predicted_depth", DepthTask()),
    "ForImageClassification": ("logits", ClassTask()),
    "ForSemanticSegmentation": ("logits", SegmentationTask()),
}
"""What an architecture predicts, and what that means, by the end of its name."""
EMBEDDING = ("CLIPModel", "SiglipModel")
WEIGHTS = {
    "model.safetensors": "model-*.safetensors",
    "pytorch_model.bin": "pytorch_model-*.bin",
}
"""Files and, where they are cut up, their shards, in the order in which they are looked for."""
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
"""Without any of these transformers would make up a vocabulary."""
SETTINGS_FILES = ("*.json", "*.txt", "*.model")
NOT_SETTINGS = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation")
"""Entries of a config that name code or kernels to run, or another kind of weights."""
COLOURS = ((0, 0, 0), (255, 255, 255), (51, 102, 204))
SIDES = (224, 448)
"""Of example images: multiples of all usual patches, so that no processor pads them."""


class ImageEmbedding(nn.Module):
    """The half of a CLIP or SigLIP that sees images: (B, 3, H, W) -> embeddings (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())

    def forward(self, images: Tensor) -> Any:
        return self.visual_projection(self.vision_model(pixel_values=images).pooler_output)


def load_transformers(
    source: str | Path, size: tuple[int, int] | None = None, name: str = ""
) -> Predictor:
    """A predictor of depth, class, segmentation or image embedding, on the CPU in float32.

    What the model's own image processor does to square images is measured and done alike,
    differentiably: normalisation, and the size, to which the whole image is resized where the
    processor would cut out its centre, bilinearly whatever filter it uses. A processor that leaves
    sizes as they are gives a predictor that does, too.

    Published DPTs lack weights of their first fusion layer. Such weights are let pass if the
    prediction does not depend on them; they are 0 then, where transformers draws them at random.

    Args:
        source: hub id or folder, e.g. ``"Intel/dpt-hybrid-midas"``.
        size: input size; None takes the processor's.
        name: of the predictor.

    Returns:
        The predictor in evaluation mode: depth (B, H, W), logits (B, K), logits (B, K, h, w) at
        the network's own resolution, or embeddings (B, D).

    Raises:
        CheckpointError: if something is missing, damaged, hostile or of another kind.
        ImportError: without the extra ``public``.
    """
    folder = hub_folder(source, SETTINGS_FILES, nested=False)
    network, missing = _load(source, folder)
    mean, std, own_size = _preprocessing(source, folder)
    kind = type(network).__name__
    found = next((what for ending, what in OUTPUTS.items() if kind.endswith(ending)), None)
    task: Task = found[1] if found else SimilarityTask()
    predicting = SelectOutput(network, found[0]) if found else ImageEmbedding(network)
    predictor = Predictor(predicting.eval(), mean, std, size or own_size, name or str(source), task)
    example = torch.zeros(1, 3, *(predictor.size or (SIDES[0], SIDES[0])))
    _settle(source, network, missing, lambda: predictor(example))
    return predictor


@torch.no_grad()
def text_targets(source: str | Path, captions: Sequence[str]) -> Tensor:
    """Embeddings of captions, as targets for the image embeddings of the same model.

    Args:
        source: hub id or folder of a CLIP or SigLIP, ``transformers/`` before it or not.
        captions: cut after as many tokens as the model was trained with (CLIP: 77).

    Returns:
        (B, D) of unit length, for :class:`ppap.tasks.similarity.SimilarityTask`.

    Raises:
        CheckpointError: as :func:`load_transformers`, and if the model knows no text.
        ImportError: without the extra ``public``.
    """
    source = str(source).removeprefix("transformers/")
    folder = hub_folder(source, SETTINGS_FILES, nested=False)
    network, missing = _load(source, folder)
    if not isinstance(getattr(network, "text_model", None), nn.Module):
        raise CheckpointError(
            f"{source} is a {type(network).__name__}, which knows no text; "
            f"name a {' or '.join(EMBEDDING)}"
        )
    ids = _tokens(source, folder, captions, network.config.text_config)
    project = getattr(network, "text_projection", nn.Identity())

    def embed() -> Tensor:
        return torch.as_tensor(project(network.text_model(ids).pooler_output))

    _settle(source, network, missing, embed)
    return F.normalize(embed(), dim=1)


def _tokens(source: str, folder: Path, captions: Sequence[str], config: Any) -> Tensor:
    """(B, length) of captions, filled up to the length that the model was trained with."""
    try:
        if not any((folder / file).is_file() for file in TOKENIZERS):
            raise FileNotFoundError(f"none of {', '.join(TOKENIZERS)}")
        tokenizer = extra("transformers").AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        ids = tokenizer(
            list(captions),
            padding="max_length",
            max_length=config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        if int(ids.max()) >= config.vocab_size:
            raise ValueError(f"it knows more than the model's {config.vocab_size} tokens")
        return torch.as_tensor(ids)
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(
            f"{source} holds no tokenizer that can be used ({one_line(error)})"
        ) from error


def _load(source: str | Path, folder: Path) -> tuple[Any, list[str]]:
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
    return network, sorted(found["missing_keys"])


def _kind(source: str | Path, settings: Mapping[str, Any], transformers: Any) -> Any:
    """The class that the config names, if it is one that predicts something."""
    names = settings.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not (name.endswith(tuple(OUTPUTS)) or name in EMBEDDING):
        endings = ", ".join(f"...{ending}" for ending in OUTPUTS)
        raise CheckpointError(
            f"{source} holds a {name}; what can be used is {endings}, {', '.join(EMBEDDING)}"
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


def _settle(
    source: str | Path, network: nn.Module, missing: Sequence[str], predict: Callable[[], Tensor]
) -> None:
    """Refuse a network that lacks weights, unless its prediction does without; those become 0."""
    tensors = network.state_dict()
    lacking = [name for name in missing if tensors[name].is_floating_point()]  # others are computed
    with torch.no_grad():
        for name in lacking:
            tensors[name].fill_(torch.nan)
        if lacking and not predict().isfinite().all():
            raise CheckpointError(
                f"{source} does not fit its own config: {misfit(lacking, [], [])}; fetch it again"
            )
        for name in lacking:
            tensors[name].zero_()


def _preprocessing(
    source: str | Path, folder: Path
) -> tuple[list[float], list[float], tuple[int, int] | None]:
    """Mean and std per channel and the size that the model's image processor gives to squares.

    They are measured, for how a processor's settings act depends on its class and its version.
    """
    try:
        processor = extra("transformers").AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        low, high, middle = (
            processor(_square(colour, side), return_tensors="pt")["pixel_values"].double()
            for colour, side in zip(COLOURS, (SIDES[0], *SIDES), strict=True)
        )
        offset = low[0, :, 0, 0]
        scale = high[0, :, 0, 0] - offset
        expected = offset + scale * torch.tensor(COLOURS[2]).double() / 255
        expected = expected[None, :, None, None].expand_as(middle)
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(
            f"{source} has no preprocessor_config.json that can be used ({one_line(error)})"
        ) from error
    if not (scale > 0).all() or not torch.allclose(middle, expected, rtol=1e-4, atol=1e-4):
        raise CheckpointError(
            f"{source} wants more than resizing and a mean and std per channel; "
            "wrap the network in a ppap.predictors.predictor.Predictor of your own"
        )
    height, width = low.shape[2:]
    size = (height, width) if middle.shape == low.shape else None
    return (-offset / scale).tolist(), (1 / scale).tolist(), size


def _square(colour: tuple[int, int, int], side: int) -> Tensor:
    """(3, side, side) uint8."""
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
