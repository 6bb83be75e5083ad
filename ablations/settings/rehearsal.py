"""Seeded weights in the published formats, at reduced width and size, for rehearsals.

Every file has the name, the layout and the keys of the published one, so that what a rehearsal
runs is what the real thing runs. Nothing that is drawn from such weights means anything.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ablations.settings import public as public_settings
from ablations.settings.models import Models, Reduced
from ablations.settings.public import PUBLIC
from ablations.settings.setting import Setting
from ppap.denoisers.catalogue import CLASSIFIERS, DENOISERS
from ppap.evaluation.features import extract
from ppap.evaluation.inception import INCEPTION_FILE, InceptionExtractor
from ppap.evaluation.reference import ReferenceStatistics
from ppap.files.images import from_uint8

__all__ = ["load", "seed_network", "seeded_inception", "seeded_models"]

VERSION = 2
SIZE, LARGE = 16, 32
"""Pixels of the guided images, and of a cascade's second stage."""
CLASSES, PER_CLASS = 5, 3
CAPTION_WIDTH = 12
UNET: dict[str, Any] = {
    "image_size": SIZE,
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_head_channels": 32,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
}
TEXT: dict[str, Any] = {"text_ctx": 6, "xf_width": 32, "xf_layers": 1, "xf_heads": 2}
CLASSIFIER: dict[str, Any] = {
    "image_size": SIZE,
    "classifier_width": 64,
    "classifier_depth": 1,
    "classifier_attention_resolutions": "8",
    "channel_mult": "1,1",
    "num_classes": CLASSES,
}
TIMM: dict[str, dict[str, Any]] = {
    "resnet50": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8},
    "deit_small_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": LARGE},
    "convnext_small": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
}


def load(name: str, rehearsed: str) -> Setting:
    """A public setting on seeded weights, under another name."""
    setting = public_settings.load(name, seeded_models(name))
    return replace(setting, name=rehearsed, budget="rehearsal")


def seeded_models(name: str) -> Models:
    """The folder of a public setting's rehearsal, made if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppap"
    folder = cache / "rehearsal" / f"{name}-{VERSION}"
    public = PUBLIC[name]
    names = [*public.predictors.values(), public.judge]
    reduced = Reduced(
        denoiser=_flags(public.denoiser),
        upsampler=_flags(public.upsampler, image_size=LARGE),
        classifier=CLASSIFIER,
        predictors={one: _options(one) for one in names},
        classes=None if public.data == "cifar10" else CLASSES,
    )
    models = Models(folder, folder / "data", reduced)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _write(name, Models(scratch, scratch / "data", reduced))
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # another process was first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return models


def seed_network(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of seeded values that keep activations within bounds."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            state[key] = torch.zeros_like(value, device="cpu")
        elif key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            state[key] = torch.ones(value.shape)
        else:
            width = max(1, value[0].numel()) if value.ndim > 1 else 100
            state[key] = torch.randn(value.shape, generator=generator) * (2 / width) ** 0.5
    return state


def seeded_inception(path: Path) -> None:
    """Inception v3 of 2015 at full size, in torch-fidelity's format."""

    class Blank(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_arguments: object, **_options: object) -> None:
            pass

    torch.save({}, path)
    network = Blank("blank", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(seed_network(network), path)


def _flags(name: str | None, **changes: Any) -> dict[str, Any]:
    if name not in DENOISERS:
        return {}
    return UNET | (TEXT if "glide" in str(name) else {}) | changes


def _options(name: str) -> dict[str, Any]:
    library, _, rest = name.partition("/")
    if library != "timm":
        return {}
    return TIMM[rest.split(".")[0]] | {"num_classes": CLASSES, "size": (LARGE, LARGE)}


def _write(name: str, models: Models) -> None:
    public, folder = PUBLIC[name], models.folder
    stages = {public.denoiser: models.reduced.denoiser}
    if public.upsampler:
        stages[public.upsampler] = models.reduced.upsampler
    for stage, flags in stages.items():
        if stage in DENOISERS:
            _write_published(DENOISERS[stage], flags, folder)
    for classifier in public.noisy.values():
        _write_published(CLASSIFIERS[classifier], models.reduced.classifier, folder)
    if name == "cifar10":
        _write_ddpm(folder / public.denoiser)
        _write_cifar(models.data)
    else:
        _write_photographs(models.data / "imagenet")
    if name == "deepfloyd":
        _write_deepfloyd(folder, public.denoiser, str(public.upsampler))
    for predictor in dict.fromkeys([*public.predictors.values(), public.judge]):
        _write_predictor(predictor, models)
    seeded_inception(folder / INCEPTION_FILE)
    if public.reference:
        extractor = InceptionExtractor(folder / INCEPTION_FILE)
        _write_reference(folder / public.reference, extractor)


def _write_published(model: Any, flags: Mapping[str, Any], folder: Path) -> None:
    """As OpenAI's files are: a plain state dict, pickled."""
    with torch.device("meta"):
        network = type(model.flags)(**vars(model.flags) | flags).network()
    torch.save(seed_network(network), folder / Path(model.file).name)


def _write_predictor(name: str, models: Models) -> None:
    library, _, rest = name.partition("/")
    path = models.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if library == "timm":
        import timm

        options = {k: v for k, v in models.reduced.predictors[name].items() if k != "size"}
        torch.manual_seed(0)
        network = timm.create_model(rest.split(".")[0], pretrained=False, **options)
        save_file(network.state_dict(), f"{path}.safetensors")
        return
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        image_size=LARGE, patch_size=8, num_labels=10,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(path)
    ViTImageProcessor(size={"height": LARGE, "width": LARGE}).save_pretrained(path)


def _write_ddpm(folder: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=LARGE, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    unet.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)


def _write_deepfloyd(folder: Path, first: str, second: str) -> None:
    from diffusers import DDPMScheduler
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    for name, size, channels, extra in (
        (first, SIZE, 3, {}),
        (second, LARGE, 6, {"class_embed_type": "timestep"}),
    ):
        _if_unet(size, channels, **extra).save_pretrained(folder / name / "unet")
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
        scheduler.save_pretrained(folder / name / "scheduler")
    noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    noising.save_pretrained(folder / second / "image_noising_scheduler")
    config = T5Config(
        d_model=CAPTION_WIDTH, d_kv=4, d_ff=24, num_layers=1, num_heads=2, vocab_size=32
    )
    T5EncoderModel(config).save_pretrained(folder / first / "text_encoder")
    _t5_tokenizer().save_pretrained(folder / first / "tokenizer")


def _if_unet(size: int, channels: int, **extra: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size, in_channels=channels, out_channels=6, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16,
        encoder_hid_dim=CAPTION_WIDTH, encoder_hid_dim_type="text_proj",
        addition_embed_type="text", addition_embed_type_num_heads=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift", **extra,
    )  # fmt: skip


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "▁"]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def _write_photographs(folder: Path) -> None:
    """Random pictures in ImageNet's layout, wider than high and not all of one size."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(CLASSES):
            one = folder / split / f"n{number:08d}"
            one.mkdir(parents=True)
            for place in range(PER_CLASS):
                size = (3 * SIZE + place, 4 * SIZE + number, 3)
                pixels = generator.integers(0, 256, size, dtype=np.uint8)
                Image.fromarray(pixels).save(one / f"{place}.JPEG", quality=95)


def _write_cifar(folder: Path) -> None:
    """Random pictures as CIFAR-10's batches for Python hold them."""
    generator = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        pixels = generator.integers(0, 256, (10, 3 * LARGE**2), dtype=np.uint8)
        held = {b"batch_label": name.encode(), b"labels": list(range(10)), b"data": pixels}
        with (base / name).open("wb") as file:
            pickle.dump(held, file, protocol=2)


def _write_reference(path: Path, extractor: InceptionExtractor) -> None:
    """Random pictures and their moments in the format of OpenAI's evaluator."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, LARGE, LARGE, 3), dtype=np.uint8)
    images = from_uint8(torch.from_numpy(pixels).movedim(-1, 1))
    found = ReferenceStatistics.from_features(extract(extractor, images))
    assert found.spatial is not None
    np.savez(
        path,
        arr_0=pixels,
        mu=found.mean,
        sigma=found.covariance,
        mu_s=found.spatial.mean,
        sigma_s=found.spatial.covariance,
    )
