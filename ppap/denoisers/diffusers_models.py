"""Pixel-space diffusion models in the format of Hugging Face diffusers, DeepFloyd-IF among them.

A model is a folder, or a hub id, that holds a U-Net and the scheduler it was trained with: side
by side as a pipeline saves them (``unet/``, ``scheduler/``), or both at the top.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.compute.modules import weights_dtype
from ppap.compute.options import check_captions
from ppap.denoisers.blocks import class_labels, small_images
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.diffusion.diffusers_scheduler import TARGETS, check_family
from ppap.diffusion.schedule import Schedule
from ppap.files.checkpoints import CheckpointError, check_values, one_line
from ppap.files.hub import extra, hub_folder, quiet, read_settings

__all__ = ["IFNetwork", "ImageUNet", "encode_if_captions", "load_diffusers", "load_schedule"]

JSON_FILES = ("*.json", "*/*.json")
AUTOENCODERS = ("vae", "vqvae", "vqmodel", "movq", "first_stage_model")
"""Folders of pipelines whose U-Net sees latents."""
CAPTION_TOKENS = 77
"""Tokens per caption that IF was trained with."""


class ImageUNet(nn.Module):
    """A diffusers ``UNet2DModel`` as the network of a denoiser."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W); ``y``: (B or 1,) labels of a conditional network.

        Raises:
            ValueError: if labels are missing, superfluous, no integers or of no class.
        """
        embedding = self.unet.class_embedding
        if y is not None and isinstance(embedding, nn.Embedding):
            y = class_labels(y, embedding.num_embeddings)
        if (y is None) != (embedding is None):
            raise ValueError("labels y go with a class-conditional network, and only with one")
        labels = None if y is None else y.expand(len(x_t))
        output = self.unet(
            x_t.to(weights_dtype(self.unet, x_t.dtype)), timesteps, class_labels=labels
        ).sample
        return torch.as_tensor(output).to(x_t.dtype)


class IFNetwork(nn.Module):
    """A stage of DeepFloyd-IF, a diffusers ``UNet2DConditionModel``, as a denoiser's network."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor | None = None,
        low_res: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """Network output under a caption each, and for an up-sampling stage small images.

        Args:
            x_t: (B, 3, H, W) noisy images.
            timesteps: (B,) original timesteps.
            prompt_embeds: (B or 1, 77, width), from :func:`encode_if_captions`.
            low_res: (B, 3, h, w) small images in [-1, 1], noised to ``noise_level``; they are
                resized bilinearly if need be.
            noise_level: (B or 1,) timesteps.

        Returns:
            (B, C', H, W) in the dtype of ``x_t``.

        Raises:
            ValueError: without captions, without what an up-sampling stage needs besides, or with
                small images that no stage but such a one sees, or that are bytes.
        """
        if prompt_embeds is None:
            raise ValueError("IF needs captions: denoiser.with_conditions(prompt_embeds=...)")
        upsamples = self.unet.class_embedding is not None
        if (low_res is not None, noise_level is not None) != (upsamples, upsamples):
            raise ValueError(
                "an up-sampling stage of IF needs low_res=... and noise_level=..., and no other "
                "takes them: denoiser.with_conditions, or ppap.diffusion.cascade.sample_cascade"
            )
        seen = x_t
        if low_res is not None:
            resized = small_images(low_res, x_t.shape[1])
            if low_res.shape[2:] != x_t.shape[2:]:
                resized = F.interpolate(low_res, x_t.shape[2:], mode="bilinear", align_corners=True)
            seen = torch.cat([x_t, resized.to(x_t.dtype).expand(len(x_t), -1, -1, -1)], dim=1)
        dtype = weights_dtype(self.unet, x_t.dtype)
        output = self.unet(
            seen.to(dtype),
            timesteps,
            encoder_hidden_states=prompt_embeds.to(dtype).expand(len(x_t), -1, -1),
            class_labels=None if noise_level is None else noise_level.expand(len(x_t)),
        ).sample
        return torch.as_tensor(output).to(x_t.dtype)


def load_diffusers(source: str | Path, dtype: torch.dtype = torch.float32) -> Denoiser:
    """A U-Net and its schedule from a diffusers folder or hub id, frozen, on the CPU.

    Args:
        source: of a ``UNet2DModel`` with a scheduler, a ``DDPMPipeline`` or a stage of
            DeepFloyd-IF.
        dtype: of all weights, as diffusers loads them; its norms compute in float32 inside.

    Returns:
        The denoiser. An IF stage wants ``with_conditions(prompt_embeds=...)``.

    Raises:
        CheckpointError: if something is missing, damaged, hostile or of another kind.
    """
    folder = hub_folder(source, JSON_FILES)
    subfolder, settings = _settings(folder, "unet", "config.json")
    config = folder / (subfolder or "") / "config.json"
    if config.read_bytes().startswith(codecs.BOM_UTF8):
        raise CheckpointError(
            f"{config} begins with a byte order mark, which diffusers cannot read; save it without"
        )
    _refuse_latents(source, folder)
    _, scheduler = _settings(folder, "scheduler", "scheduler_config.json")
    # Before diffusers 0.9 a flag said what is predicted.
    earlier = "epsilon" if scheduler.get("predict_epsilon", True) else "sample"
    if (target := scheduler.get("prediction_type", earlier)) not in TARGETS:
        raise CheckpointError(f"{source} predicts {target!r}; what can be used is {list(TARGETS)}")
    kinds = {"UNet2DModel": ImageUNet, "UNet2DConditionModel": IFNetwork}
    kind = settings.get("_class_name")
    if kind not in kinds:
        raise CheckpointError(f"{source} holds a {kind}; what can be used is {', '.join(kinds)}")
    try:
        unet, found = getattr(extra("diffusers"), kind).from_pretrained(
            source, subfolder=subfolder, output_loading_info=True, torch_dtype=dtype
        )
    except Exception as error:  # diffusers raises whatever it meets
        raise CheckpointError(
            f"{source}: the weights are missing, damaged or of another network "
            f"({one_line(error)}); fetch them again"
        ) from error
    if wrong := {name: keys for name, keys in found.items() if keys}:
        raise CheckpointError(f"{source} does not fit its own config: {wrong}")
    check_values(dict(unet.named_parameters()), str(source))
    channels = unet.config.in_channels
    if unet.config.class_embed_type is not None and kind == "UNet2DConditionModel":
        channels //= 2  # an up-sampling stage sees the small image, too
    outputs = unet.config.out_channels
    if channels < 1 or outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"{source} makes {outputs} channels of {unet.config.in_channels}, so that it does more "
            "than take noise from images; give an unconditional model"
        )
    if outputs == 2 * channels and scheduler.get("variance_type") == "learned":
        raise CheckpointError(
            f"{source} predicts variances as they are (variance_type 'learned'); what can be used "
            "is 'learned_range', where they are between the smallest and the largest"
        )
    height, width = _size(source, unet.config.sample_size)
    denoiser = Denoiser(
        kinds[kind](unet),
        _schedule(source, scheduler),
        (channels, height, width),
        TARGETS[target],
        learned_variance=outputs == 2 * channels,
    )
    return cast(Denoiser, freeze(denoiser))


def load_schedule(source: str | Path, part: str = "scheduler") -> Schedule:
    """The noise schedule of one scheduler of a diffusers folder or hub id.

    Args:
        source: of the model.
        part: e.g. ``"image_noising_scheduler"``, of the noise that an up-sampling stage of
            DeepFloyd-IF wants on its small images.

    Raises:
        CheckpointError: if there is none, or none that can be used.
    """
    _, settings = _settings(hub_folder(source, JSON_FILES), part, "scheduler_config.json")
    return _schedule(source, settings)


@torch.no_grad()
def encode_if_captions(
    source: str | Path, captions: Sequence[str] = ("",), dtype: torch.dtype = torch.float32
) -> Tensor:
    """T5 embeddings of captions for the stages of DeepFloyd-IF: (B, 77, width).

    Args:
        source: hub id or folder of the first stage, which holds the text encoder.
        captions: the empty caption leaves IF unconditional.
        dtype: of the text encoder.

    Raises:
        CheckpointError: if the text encoder is missing or damaged.
        TypeError: for a single caption that is in no list.
        ValueError: for no captions.
    """
    check_captions(captions)
    transformers = extra("transformers")
    try:
        tokenizer = transformers.T5Tokenizer.from_pretrained(source, subfolder="tokenizer")
        encoder = transformers.T5EncoderModel.from_pretrained(
            source, subfolder="text_encoder", dtype=dtype
        )
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(f"{source} holds no IF text encoder ({one_line(error)})") from error
    texts = [caption.lower().strip() for caption in captions]
    found = tokenizer(
        texts, padding="max_length", max_length=CAPTION_TOKENS, truncation=True, return_tensors="pt"
    )
    output = encoder.eval()(found.input_ids, attention_mask=found.attention_mask)
    return torch.as_tensor(output.last_hidden_state)


def _settings(folder: Path, part: str, file: str) -> tuple[str | None, dict[str, Any]]:
    """The subfolder of a part of the model, None for the top, and its settings."""
    for subfolder in (part, None):
        path = folder / (subfolder or "") / file
        if path.is_file():
            return subfolder, read_settings(path)
    raise CheckpointError(
        f"{folder} holds neither {part}/{file} nor {file}; give a diffusers model"
    )


def _refuse_latents(source: str | Path, folder: Path) -> None:
    for part in AUTOENCODERS:
        if (folder / part / "config.json").is_file():
            raise CheckpointError(
                f"{source} denoises the latents of its {part}, not images; give a pixel-space model"
            )


def _size(source: str | Path, sample_size: Any) -> tuple[int, int]:
    """Height and width of the images, which a configuration need not say."""
    size = tuple(sample_size) if isinstance(sample_size, Sequence) else (sample_size, sample_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise CheckpointError(
            f"{source} has the sample_size {sample_size!r} in its config.json; write there the "
            "height and width that it was trained on, e.g. 64 or [64, 96]"
        )
    return size[0], size[1]


def _schedule(source: str | Path, settings: dict[str, Any]) -> Schedule:
    """The noise levels of a scheduler's own table, in float64 where its betas say the same."""
    name = str(settings.get("_class_name"))
    try:
        # Settings of another scheduler's steps have no bearing here.
        with quiet("diffusers.configuration_utils"):
            scheduler = getattr(extra("diffusers"), name).from_config(settings)
        check_family(scheduler)
        table = scheduler.alphas_cumprod.double().numpy()
        levels = np.cumprod(1 - scheduler.betas.double().numpy())
        return Schedule(levels if np.allclose(levels, table, rtol=1e-3, atol=0) else table)
    except (ValueError, TypeError, NotImplementedError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"{source} has the scheduler {name}, whose noise schedule cannot be used "
            f"({one_line(error)})"
        ) from error
