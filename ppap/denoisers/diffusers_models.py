"""Pixel-space diffusion models in the format of Hugging Face diffusers, DeepFloyd-IF among them.

A model is a folder, or a hub id, that holds a U-Net and the scheduler it was trained with: side
by side as a pipeline saves them (``unet/``, ``scheduler/``), or both at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.diffusion.denoiser import Denoiser, Target, freeze
from ppap.diffusion.schedule import Schedule
from ppap.files.checkpoints import CheckpointError, one_line
from ppap.files.hub import extra, hub_folder, quiet, read_settings

__all__ = ["IFNetwork", "ImageUNet", "encode_if_captions", "load_diffusers", "load_schedule"]

TARGETS: dict[str, Target] = {"epsilon": "epsilon", "sample": "x_0", "v_prediction": "v"}
JSON_FILES = ("*.json", "*/*.json")
CAPTION_TOKENS = 77
"""Tokens per caption that IF was trained with."""


class ImageUNet(nn.Module):
    """A diffusers ``UNet2DModel`` as the network of a denoiser."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.unet = unet
        self.dtype = dtype

    def forward(self, x_t: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W); ``y``: (B or 1,) labels of a conditional network."""
        labels = None if y is None else y.expand(len(x_t))
        output = self.unet(x_t.to(self.dtype), timesteps, class_labels=labels).sample
        return torch.as_tensor(output).to(x_t.dtype)


class IFNetwork(nn.Module):
    """A stage of DeepFloyd-IF, a diffusers ``UNet2DConditionModel``, as a denoiser's network."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.unet = unet
        self.dtype = dtype

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
            ValueError: without captions.
        """
        if prompt_embeds is None:
            raise ValueError("IF needs captions: denoiser.with_conditions(prompt_embeds=...)")
        seen = x_t
        if low_res is not None:
            resized = low_res
            if low_res.shape[2:] != x_t.shape[2:]:
                resized = F.interpolate(low_res, x_t.shape[2:], mode="bilinear", align_corners=True)
            seen = torch.cat([x_t, resized.to(x_t.dtype).expand(len(x_t), -1, -1, -1)], dim=1)
        output = self.unet(
            seen.to(self.dtype),
            timesteps,
            encoder_hidden_states=prompt_embeds.to(self.dtype).expand(len(x_t), -1, -1),
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
    _, scheduler = _settings(folder, "scheduler", "scheduler_config.json")
    if (target := scheduler.get("prediction_type", "epsilon")) not in TARGETS:
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
    channels = unet.config.in_channels
    if unet.config.class_embed_type is not None and kind == "UNet2DConditionModel":
        channels //= 2  # an up-sampling stage sees the small image, too
    size = unet.config.sample_size
    height, width = size if isinstance(size, Sequence) else (size, size)
    denoiser = Denoiser(
        kinds[kind](unet, dtype),
        _schedule(source, scheduler),
        (channels, height, width),
        TARGETS[target],
        learned_variance=unet.config.out_channels == 2 * channels,
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
    """
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


def _schedule(source: str | Path, settings: dict[str, Any]) -> Schedule:
    try:
        # Settings of another scheduler's steps have no bearing here.
        with quiet("diffusers.configuration_utils"):
            betas = extra("diffusers").DDPMScheduler.from_config(settings).betas
        return Schedule(np.cumprod(1 - betas.double().numpy()))
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{source} has a noise schedule that cannot be used ({one_line(error)})"
        ) from error
