"""Small models, saved as their libraries save them, that the tests of predictors share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers
from torch import Tensor, nn

from ppap.experts.adapters.layers import (
    ATTENTION_LORA_LAYERS,
    DPT_LORA_LAYERS,
    SEGFORMER_LORA_LAYERS,
)
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask

transformers.utils.logging.set_verbosity_error()


transformers.utils.logging.disable_progress_bar()


SIDE = 32


TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


VISION = {**TOWER, "intermediate_size": 16, "image_size": SIDE, "patch_size": 8}


SIZE = {"height": SIDE, "width": SIDE}


WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "dog</w>", "cat</w>"]


WORDS += ["a", "c", "d", "o", "ca", "do", "g</w>", "t</w>"]


TEXT = {
    **TOWER,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "vocab_size": len(WORDS),
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def seeded(network: nn.Module) -> Any:
    """Weights that neither die in a ReLU nor vanish; batch statistics that are not initial."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif value.ndim > 1 and value.is_floating_point():
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0.1, 0.1, generator=generator)
    return network.eval()


def dpt_config(**options: Any) -> Any:
    return transformers.DPTConfig(
        **VISION
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
        }
        | options
    )


def dpt() -> tuple[Any, Any]:
    network = transformers.DPTForDepthEstimation(dpt_config())
    return network, transformers.DPTImageProcessor(size=SIZE)


def dpt_hybrid() -> tuple[Any, Any]:
    backbone = {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 24],
        "depths": [1, 1, 1],
        "num_groups": 4,
        "global_padding": "same",
        "layer_type": "bottleneck",
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
    }
    config = dpt_config(
        is_hybrid=True,
        patch_size=16,
        backbone_config=backbone,
        backbone_featmap_shape=[1, 24, 2, 2],
        neck_hidden_sizes=[8, 16, 8, 8],
    )
    return transformers.DPTForDepthEstimation(config), transformers.DPTImageProcessor(size=SIZE)


def depth_anything() -> tuple[Any, Any]:
    backbone = transformers.Dinov2Config(
        **VISION | {"num_hidden_layers": 4, "patch_size": 14, "image_size": 28},
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    processor = transformers.DPTImageProcessor(
        size={"height": 30, "width": 30}, ensure_multiple_of=14, keep_aspect_ratio=True
    )
    return transformers.DepthAnythingForDepthEstimation(config), processor


def vit() -> tuple[Any, Any]:
    network = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=5))
    return network, transformers.ViTImageProcessor(size=SIZE)


def segformer() -> tuple[Any, Any]:
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 2, 2],
        strides=[2, 2, 2, 2],
        sr_ratios=[2, 2, 1, 1],
        decoder_hidden_size=8,
        num_labels=4,
    )
    network = transformers.SegformerForSemanticSegmentation(config)
    return network, transformers.SegformerImageProcessor(size=SIZE)


def clip() -> tuple[Any, Any]:
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=6)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIZE)
    return transformers.CLIPModel(config), processor


def siglip() -> tuple[Any, Any]:
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    return transformers.SiglipModel(config), transformers.SiglipImageProcessor(size=SIZE)


MODELS: dict[str, tuple[Callable[[], tuple[Any, Any]], Task, str]] = {
    "dpt": (dpt, DepthTask(), DPT_LORA_LAYERS),
    "dpt-hybrid": (dpt_hybrid, DepthTask(), DPT_LORA_LAYERS),
    "depth-anything": (depth_anything, DepthTask(), DPT_LORA_LAYERS),
    "vit": (vit, ClassTask(), ATTENTION_LORA_LAYERS),
    "segformer": (segformer, SegmentationTask(), SEGFORMER_LORA_LAYERS),
    "clip": (clip, SimilarityTask(), ATTENTION_LORA_LAYERS),
    "siglip": (siglip, SimilarityTask(), ATTENTION_LORA_LAYERS),
}


def saved(model: str, folder: Path, **options: Any) -> Any:
    """The network that is now in the folder, as transformers saves it."""
    torch.manual_seed(0)
    network, processor = MODELS[model][0]()
    seeded(network).save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    return network


def pixels(side: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def in_range(images: Tensor) -> Tensor:
    return images / 127.5 - 1


def pooled(features: Any) -> Tensor:
    """Embeddings, which transformers gives as they are until version 5."""
    return features if isinstance(features, Tensor) else features.pooler_output


def published(network: Any, inputs: Tensor) -> Tensor:
    """The library's own prediction."""
    if hasattr(network, "get_image_features"):
        return pooled(network.get_image_features(inputs))
    output = network(inputs)
    return output.predicted_depth if "predicted_depth" in output else output.logits


def torchvision_file(name: str, path: Path, **options: Any) -> Any:
    """A network with torchvision's published structure, its weights in the file."""
    network = seeded(torchvision.models.get_model(name, weights=None, **options))
    torch.save(network.state_dict(), path)
    return network


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)
