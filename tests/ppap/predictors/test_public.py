"""Public predictors: what they predict and what they refuse, from files saved by the libraries."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from ppap.diffusion.ddim import DDIM
from ppap.diffusion.guide import State
from ppap.diffusion.schedule import linear_schedule
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.layers import (
    ATTENTION_LORA_LAYERS,
    DEEPLAB_LORA_LAYERS,
    DPT_LORA_LAYERS,
    SEGFORMER_LORA_LAYERS,
)
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.bank import ExpertBank
from ppap.experts.objectives import Distillation
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.fast.path import FastPath
from ppap.fast.sampling import sample
from ppap.files.checkpoints import CheckpointError, save_weights
from ppap.guidance.guides import naive_guide
from ppap.predictors.predictor import Predictor
from ppap.predictors.public import load_predictor, text_targets
from ppap.predictors.wrappers import MixedPrecision
from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import SegmentationTask
from ppap.tasks.similarity import SimilarityTask
from tests.ppap.networks import tiny_denoiser

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


@pytest.mark.parametrize("model", MODELS)
def test_a_transformers_model_predicts_what_its_pipeline_does(model: str, tmp_path: Path) -> None:
    saved(model, tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    side = 28 if model == "depth-anything" else SIDE  # the multiple of 14 nearest to 30
    assert predictor.size == (side, side)
    images = pixels(side)
    kinds = {
        DepthTask(): transformers.AutoModelForDepthEstimation,
        ClassTask(): transformers.AutoModelForImageClassification,
        SegmentationTask(): transformers.AutoModelForSemanticSegmentation,
        SimilarityTask(): transformers.AutoModel,
    }
    network = kinds[MODELS[model][1]].from_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = published(network, processor(images, return_tensors="pt").pixel_values)
    x = in_range(images).requires_grad_()
    found = predictor(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.01
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    assert not any(part.training for part in predictor.modules())


@pytest.mark.parametrize(
    ("model", "settings", "size"),
    [
        ("segformer", {"size": 24}, (24, 24)),
        ("segformer", {"size": {"height": 24, "width": 20}}, (24, 20)),
        ("clip", {"size": {"shortest_edge": 24}, "do_center_crop": False}, (24, 24)),
        ("clip", {"size": {"shortest_edge": 28}, "crop_size": 28}, (28, 28)),
    ],
)
def test_sizes_are_the_processors(
    model: str, settings: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    saved(model, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    bilinear = {"resample": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings | bilinear))
    predictor = load_predictor(f"transformers/{tmp_path}")
    assert predictor.size == size
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    images = pixels(57)
    expected = processor(images, return_tensors="pt").pixel_values
    prepared = predictor.prepare(in_range(images))
    # The processor rounds to bytes after each of two passes; two halves of a step are this far.
    assert (prepared - expected).abs().max() < 1 / 255 / predictor.std.min()
    assert load_predictor(f"transformers/{tmp_path}", size=(16, 16)).size == (16, 16)


def test_a_processor_that_leaves_sizes_gives_a_predictor_that_does(tmp_path: Path) -> None:
    saved("segformer", tmp_path)
    processor = transformers.SegformerImageProcessor(do_resize=False, do_normalize=False)
    processor.save_pretrained(tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    assert predictor.size is None
    torch.testing.assert_close(predictor.prepare(in_range(pixels(40))), pixels(40) / 255)


def test_a_processor_of_bytes_that_pads_is_understood(tmp_path: Path) -> None:
    """As that of facebook/dpt-dinov2-small-nyu: statistics of bytes, sides filled up to 14s."""
    saved("dpt", tmp_path)
    transformers.DPTImageProcessor(
        do_resize=False,
        do_rescale=False,
        do_pad=True,
        size_divisor=14,
        image_mean=[123.675, 116.28, 103.53],
        image_std=[58.395, 57.12, 57.375],
    ).save_pretrained(tmp_path)
    predictor = load_predictor(f"transformers/{tmp_path}")
    assert predictor.size is None
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    images = pixels(42)
    expected = processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(predictor.prepare(in_range(images)), expected, rtol=0, atol=1e-5)


def test_preprocessing_that_mixes_channels_is_refused(tmp_path: Path) -> None:
    saved("segformer", tmp_path)
    transformers.MobileViTImageProcessor(size=SIZE, crop_size=SIZE).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Predictor of your own"):
        load_predictor(f"transformers/{tmp_path}")


@torch.no_grad()
@pytest.mark.parametrize("form", ["bin", "shards", "half"])
def test_weights_load_however_they_are_saved(form: str, tmp_path: Path) -> None:
    network = saved("vit", tmp_path, max_shard_size="20KB" if form == "shards" else "5GB")
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    if form == "half":
        network.half().save_pretrained(tmp_path)
        network.float()
    assert (form == "shards") == (tmp_path / "model.safetensors.index.json").is_file()
    predictor = load_predictor("transformers/some/vit", tmp_path)
    assert predictor.name == "transformers/some/vit"
    assert {value.dtype for value in predictor.parameters()} == {torch.float32}
    images = pixels(SIDE)
    torch.testing.assert_close(predictor(in_range(images)), network(in_range(images)).logits)


@torch.no_grad()
def test_weights_that_no_prediction_needs_may_be_missing(tmp_path: Path) -> None:
    """Intel's DPTs lack those of a residual unit that their first fusion layer never calls."""
    network = saved("dpt", tmp_path)
    state = network.state_dict()
    unused = [key for key in state if "fusion_stage.layers.0.residual_layer1" in key]
    assert len(unused) == 4
    kept = {key: value for key, value in state.items() if key not in unused}
    save_weights(kept, tmp_path / "model.safetensors")
    predictor = load_predictor(f"transformers/{tmp_path}")
    x = in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(x).predicted_depth)
    loaded = dict(predictor.network.named_parameters())
    assert all((loaded[f"network.{key}"] == 0).all() for key in unused)
    again = load_predictor(f"transformers/{tmp_path}")
    banks = [ExpertBank(one, 2, Adapter((Biases(),))) for one in (predictor, again)]
    assert banks[0].fingerprint() == banks[1].fingerprint()  # nothing was drawn at random
    del kept["neck.fusion_stage.layers.1.residual_layer1.convolution1.bias"]
    save_weights(kept, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing neck\.fusion_stage\.layers\.0") as caught:
        load_predictor(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("hostile", "damaged or holds more than weights"),
        ("cut", "damaged"),
        ("absent", "weights are missing"),
        ("lacks", r"missing vit\.layernorm\.bias"),
        ("adds", "unexpected more.weight"),
        ("shape", r"wrong shape vit\.layernorm\.bias"),
        ("json", "config.json is damaged"),
        ("list", "config.json is damaged"),
        ("config", r"holds no config\.json"),
        ("settings", "the config is damaged"),
        ("kind", "holds a ViTModel; what can be used is ...ForDepthEstimation"),
        ("unknown", "transformers .* does not know"),
        ("processor", "no preprocessor_config.json"),
        ("processor-json", "no preprocessor_config.json that can be used"),
        ("processor-code", "no preprocessor_config.json that can be used"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(damage: str, reason: str, tmp_path: Path) -> None:
    state = saved("vit", tmp_path).state_dict()
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    processor = tmp_path / "preprocessor_config.json"

    def change(path: Path, **settings: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    def hostile() -> None:
        weights.unlink()
        content = pickle.dumps(Hostile(tmp_path / "run"), protocol=2)
        (tmp_path / "pytorch_model.bin").write_bytes(content)

    def code() -> None:
        (tmp_path / "own.py").write_text(f"import os; os.mkdir({str(tmp_path / 'run')!r})")
        processor.write_text(json.dumps({"auto_map": {"AutoImageProcessor": "own.Own"}}))
        change(config, model_type="own")

    def rest(**changed: Tensor) -> None:
        save_weights(state | changed, weights)

    {
        "hostile": hostile,
        "cut": lambda: weights.write_bytes(weights.read_bytes()[:-100]),
        "absent": weights.unlink,
        "lacks": lambda: save_weights(
            {key: value for key, value in state.items() if key != "vit.layernorm.bias"}, weights
        ),
        "adds": lambda: rest(**{"more.weight": torch.zeros(2)}),
        "shape": lambda: rest(**{"vit.layernorm.bias": torch.zeros(3)}),
        "json": lambda: config.write_text("{"),
        "list": lambda: config.write_text("[1]"),
        "config": config.unlink,
        "settings": lambda: change(config, hidden_size="wide"),
        "kind": lambda: change(config, architectures=["ViTModel"]),
        "unknown": lambda: change(config, architectures=["NoSuchForDepthEstimation"]),
        "processor": processor.unlink,
        "processor-json": lambda: processor.write_text("{"),
        "processor-code": code,
    }[damage]()
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_predictor(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_code_in_a_config_is_not_heeded(tmp_path: Path) -> None:
    network = saved("vit", tmp_path)
    config = tmp_path / "config.json"
    code = {"auto_map": {"AutoConfig": "own.Own"}, "quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | code))
    predictor = load_predictor(f"transformers/{tmp_path}")
    x = in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(x).logits)


def test_a_hub_id_is_found_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"fetch https://huggingface\.co/some/vit") as caught:
        load_predictor("transformers/some/vit")
    assert "\n" not in str(caught.value)
    commit = "0" * 40
    cached = tmp_path / "models--some--vit"
    network = saved("vit", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    predictor = load_predictor("transformers/some/vit")
    assert predictor.name == "transformers/some/vit"
    x = in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(x).logits)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ImportError, match=r"pip install transformers") as caught:
        load_predictor(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)


def tokenizer(folder: Path) -> None:
    """The files of CLIP's tokenizer, as they are published."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", "c a", "ca t</w>", "d o", "do g</w>"]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@torch.no_grad()
def test_captions_are_embedded_by_clips_own_text_tower(tmp_path: Path) -> None:
    network = saved("clip", tmp_path)
    tokenizer(tmp_path)
    found = text_targets(f"transformers/{tmp_path}", ["a dog", "A CAT"])
    ids = torch.tensor([[0, 2, 3, 1], [0, 2, 4, 1]])
    expected = pooled(network.get_text_features(ids))
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=1))
    assert text_targets(tmp_path, ["a dog " * 40]).isfinite().all()
    predictor = load_predictor(f"transformers/{tmp_path}")
    images = pixels(SIDE, count=3)
    both = network(
        input_ids=ids, pixel_values=predictor.prepare(in_range(images)), return_dict=True
    )
    task = SimilarityTask(scale=network.logit_scale.exp().item())
    for caption in range(2):
        logits = (
            task.log_likelihood(predictor(in_range(images)), found[caption].expand(3, -1))
            + task.scale
        )
        torch.testing.assert_close(logits, both.logits_per_image[:, caption], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_captions_of_siglip(tmp_path: Path) -> None:
    network = saved("siglip", tmp_path)
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "dog": 2, "<unk>": 3}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    ids = torch.tensor([[1, 2] + 10 * [0]])
    expected = pooled(network.get_text_features(ids))
    found = text_targets(tmp_path, ["a dog"])
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=1))


def test_captions_for_what_knows_no_text_are_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path / "vit")
    with pytest.raises(CheckpointError, match="ViTForImageClassification, which knows no text"):
        text_targets(tmp_path / "vit", ["a dog"])
    network = saved("clip", tmp_path / "clip")
    with pytest.raises(CheckpointError, match="no tokenizer") as caught:
        text_targets(tmp_path / "clip", ["a dog"])
    assert "\n" not in str(caught.value)
    tokenizer(tmp_path / "clip")
    state = network.state_dict()
    del state["text_projection.weight"]
    save_weights(state, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing text_projection\.weight"):
        text_targets(tmp_path / "clip", ["a dog"])


def torchvision_file(name: str, path: Path, **options: Any) -> Any:
    """A network with torchvision's published structure, its weights in the file."""
    network = seeded(torchvision.models.get_model(name, weights=None, **options))
    torch.save(network.state_dict(), path)
    return network


@torch.no_grad()
def test_a_torchvision_classifier_is_what_its_transforms_and_network_are(tmp_path: Path) -> None:
    network = torchvision_file("resnet18", tmp_path / "resnet18.pth", num_classes=7)
    predictor = load_predictor("torchvision/resnet18", tmp_path / "resnet18.pth", num_classes=7)
    assert predictor.size == (224, 224)
    assert predictor.name == "torchvision/resnet18"
    images = pixels(224, count=1)
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms(resize_size=224)
    torch.testing.assert_close(predictor(in_range(images)), network(transforms(images)))


@pytest.mark.parametrize("name", ["resnet50", "resnet50:IMAGENET1K_V1", "resnet50.IMAGENET1K_V2"])
def test_torchvision_weights_are_fetched_by_name_from_its_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    asked: list[str] = []

    def download(url: str, path: str, digest: str, progress: bool) -> None:
        asked.append(url)
        assert digest == url[-12:-4]
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    with pytest.raises(CheckpointError, match=r"no network.*fetch https://download.*give its path"):
        load_predictor(f"torchvision/{name}")
    versions = torchvision.models.ResNet50_Weights
    version = versions.IMAGENET1K_V1 if name.endswith("V1") else versions.IMAGENET1K_V2
    assert asked == [version.url]


@torch.no_grad()
def test_a_torchvision_segmenter_gives_its_logits(tmp_path: Path) -> None:
    name, path = "deeplabv3_mobilenet_v3_large", tmp_path / "deeplab.pth"
    network = torchvision_file(name, path, weights_backbone=None, num_classes=4, aux_loss=True)
    predictor = load_predictor(f"torchvision/{name}", path, num_classes=4)
    assert predictor.size == (520, 520)
    predictor = load_predictor(f"torchvision/{name}", path, size=(48, 48), num_classes=4)
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms(resize_size=48)
    images = pixels(48)
    expected = network(transforms(images))["out"]
    torch.testing.assert_close(predictor(in_range(images)), expected, rtol=1e-4, atol=1e-4)
    assert not any("aux" in key for key in predictor.state_dict())
    without = {key: value for key, value in network.state_dict().items() if "aux" not in key}
    torch.save(without, path)
    with pytest.raises(CheckpointError, match=r"missing aux_classifier\.0\.weight"):
        load_predictor(f"torchvision/{name}", path, num_classes=4)
    own = load_predictor(f"torchvision/{name}", path, (48, 48), num_classes=4, aux_loss=False)
    torch.testing.assert_close(own(in_range(images)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["googlenet", "densenet121", "mnasnet0_5"])
def test_torchvision_files_of_old_load_as_torchvision_loads_them(name: str, tmp_path: Path) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision_file(name, tmp_path / "old.pth", **options)
    state = {
        # As the published file has it: other names within dense layers, no counters.
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    if name != "densenet121":
        state = network.state_dict()
    torch.save(state, tmp_path / "old.pth")
    predictor = load_predictor(f"torchvision/{name}", tmp_path / "old.pth", size=(64, 64))
    network.transform_input = True  # torchvision sets it where it loads GoogLeNet's weights
    x = in_range(pixels(64))
    torch.testing.assert_close(predictor(x), network(predictor.prepare(x)), rtol=1e-4, atol=1e-4)


def test_a_timm_checkpoint_loads_strictly_with_its_own_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=7).eval()
    save_weights(source.state_dict(), tmp_path / "resnet18.safetensors")
    predictor = load_predictor("timm/resnet18", tmp_path / "resnet18.safetensors", num_classes=7)
    assert predictor.size == (224, 224)
    assert predictor.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        normalised = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        torch.testing.assert_close(predictor(2 * x - 1), source(normalised), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_predictor("timm/resnet18", tmp_path / "resnet18.safetensors", num_classes=8)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("hostile", "damaged or holds more than weights"),
        ("cut", "damaged or holds more than weights"),
        ("absent", "no checkpoint"),
        ("other", r"does not fit ResNet: missing .*unexpected"),
    ],
)
def test_wrong_files_are_refused_in_one_line(damage: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3)}, path)
    if damage == "hostile":
        path.write_bytes(pickle.dumps(Hostile(tmp_path / "run"), protocol=2))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        path.unlink()
    for library in ("timm", "torchvision"):
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_predictor(f"{library}/resnet18", path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("resnet18", "timm/NAME .*torchvision/NAME.*transformers/HUB_ID"),
        ("hub/resnet18", "timm/NAME .*torchvision/NAME.*transformers/HUB_ID"),
        ("transformers/", "timm/NAME .*torchvision/NAME.*transformers/HUB_ID"),
        ("timm/resnet51", r"resnet50, .*timm\.list_models"),
        ("timm/resnet18.nosuchtag", r"Invalid pretrained tag.*timm\.list_pretrained"),
        ("torchvision/resnet51", r"resnet50, .*torchvision\.models\.list_models"),
        ("torchvision/maskrcnn_resnet50_fpn", "no classifier or segmenter .*fcn_resnet50"),
        ("torchvision/resnet50:V3", "choose from IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("torchvision/vgg16:IMAGENET1K_FEATURES", "choose from IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_unknown_names_say_what_can_be_typed(name: str, listed: str) -> None:
    with pytest.raises(ValueError, match=listed) as caught:
        load_predictor(name)
    assert "\n" not in str(caught.value)


def test_options_are_not_for_transformers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out num_classes"):
        load_predictor(f"transformers/{tmp_path}", num_classes=3)


def banked(model: str, folder: Path, **options: Any) -> ExpertBank:
    saved(model, folder)
    predictor = load_predictor(f"transformers/{folder}", **options)
    lora = Lora(2, 2.0, layers=MODELS[model][2])
    return ExpertBank(predictor, 2, Adapter((Biases(), Norms(), lora)))


def torchvision_bank(folder: Path) -> ExpertBank:
    name, path = "deeplabv3_resnet50", folder / "deeplab.pth"
    torchvision_file(name, path, weights_backbone=None, num_classes=4, aux_loss=True)
    predictor = load_predictor(f"torchvision/{name}", path, size=(SIDE, SIDE), num_classes=4)
    lora = Lora(2, 2.0, layers=DEEPLAB_LORA_LAYERS)
    return ExpertBank(predictor, 2, Adapter((Biases(), Norms(), lora)))


@pytest.mark.parametrize("model", [*MODELS, "torchvision"])
def test_experts_of_every_kind_train_and_guide(model: str, tmp_path: Path) -> None:
    if model == "torchvision":
        bank, task = torchvision_bank(tmp_path), SegmentationTask()
    else:
        bank, task = banked(model, tmp_path), MODELS[model][1]
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    training = Training(steps=2, batch=2, learning_rate=1e-3)
    assert bank.task == task  # which its loader knew
    losses = transfer(bank, linear_schedule(), pixels(SIDE, 4), training=training)
    assert all(loss > 0 for loss in losses)
    moved = [
        key
        for key, value in bank.state_dict().items()
        if key.endswith("lora_B") and not torch.equal(value, before[key])
    ]
    assert len(moved) == sum(key.endswith("lora_B") for key in before)  # not one is unused
    x = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        targets = task.target(bank.predictor(in_range(pixels(SIDE, 3))))
    guide = bank.guide(targets, 1.0, task)
    timesteps = torch.tensor([3, 990, 10])
    gradient = guide(State(x, timesteps))
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    one_by_one = [
        guide.rows(slice(i, i + 1))(State(x[i : i + 1], timesteps[i : i + 1])) for i in range(3)
    ]
    torch.testing.assert_close(gradient, torch.cat(one_by_one), rtol=1e-3, atol=1e-4)
    bank.save(tmp_path / "bank")
    again = ExpertBank.load(tmp_path / "bank", bank.predictor)
    torch.testing.assert_close(again.guide(targets, 1.0, task)(State(x, timesteps)), gradient)


@pytest.mark.parametrize("model", ["vit", "segformer", "clip"])
def test_the_fast_path_draws_the_same_images(model: str, tmp_path: Path) -> None:
    bank, task = banked(model, tmp_path), MODELS[model][1]
    with torch.no_grad():
        targets = task.target(bank.predictor(in_range(pixels(SIDE))))
    guide = bank.guide(targets, 1.0, task)
    denoiser = tiny_denoiser()
    fast = FastPath(denoiser, 2, compile=False)
    traced = sample(denoiser, [1, 2], guide, DDIM(3), fast=fast)
    plain = sample(denoiser, [1, 2], guide, DDIM(3), fast=False)
    torch.testing.assert_close(traced, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_takes_experts_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    single = banked("clip", tmp_path)
    half = banked("clip", tmp_path, dtype=dtype)
    assert isinstance(half.predictor.network, MixedPrecision)
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    x = in_range(pixels(SIDE))
    with torch.no_grad():
        targets = single.predictor(in_range(pixels(SIDE)).flip(0))
        found, expected = half.predictor(x), single.predictor(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    timesteps = torch.tensor([3, 990])
    training = Training(steps=2, batch=2, learning_rate=1e-3)
    for bank in (single, half):
        objective = Distillation(SimilarityTask())
        transfer(bank, linear_schedule(), pixels(SIDE, 4), objective, training)
    gradients = [
        bank.guide(targets, 1.0, SimilarityTask())(State(x, timesteps)) for bank in (single, half)
    ]
    assert nn.functional.cosine_similarity(*(part.flatten(1) for part in gradients)).min() > 0.99


def brightness(images: Tensor) -> Tensor:
    """(B, 2) logits of dark and bright."""
    light = images.mean(dim=(1, 2, 3))
    return torch.stack([-light, light], dim=1)


@pytest.mark.parametrize("fast", [False, True])
def test_any_function_guides(fast: bool) -> None:
    predictor = Predictor(brightness)
    assert predictor.name == "brightness"
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(predictor(x), brightness(x))
    guide = naive_guide(predictor, ClassTask(), torch.tensor([0, 1]), 4000.0)
    light = x.mean(dim=(1, 2, 3))
    slope = 2 * torch.sigmoid(2 * torch.stack([light[0], -light[1]])) * torch.tensor([-1, 1]) / 192
    expected = 4000 * slope[:, None, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(guide(State(x, torch.tensor([1, 2]))), expected)
    denoiser = tiny_denoiser()
    path = FastPath(denoiser, 2, compile=False) if fast else False
    dark, bright = sample(denoiser, [1, 2], guide, DDIM(5), fast=path).mean(dim=(1, 2, 3))
    assert dark < -0.2 < 0.2 < bright


def test_a_function_has_nothing_for_experts_to_adapt() -> None:
    with pytest.raises(ValueError, match="brightness has no weights") as caught:
        ExpertBank(Predictor(brightness), 2)
    assert "\n" not in str(caught.value)
