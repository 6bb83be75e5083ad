"""Blocks of the ADM U-Net family: embedding, norm, resampling, residual block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ppap.compute.known import values_known

__all__ = [
    "BlockOptions",
    "Downsample",
    "GroupNorm32",
    "ResBlock",
    "Upsample",
    "at_least_float32",
    "class_labels",
    "group_norm",
    "small_images",
    "timestep_embedding",
    "zeroed",
]

NORM_GROUPS = 32


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of timesteps.

    Args:
        timesteps: (B,) timesteps; may be fractional.
        dim: width of the embedding; an odd width ends in a zero column.
        max_period: period of the slowest sinusoid, in units of 2 pi timesteps.

    Returns:
        (B, dim) float32; cosines first, then sines.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponent)[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def at_least_float32(input: Tensor, *weights: Tensor) -> list[Tensor]:
    """An input and weights, all in the input's dtype, or in float32 if that has less."""
    wide = torch.promote_types(input.dtype, torch.float32)
    return [value.to(wide) for value in (input, *weights)]


def class_labels(y: Tensor, classes: int) -> Tensor:
    """Labels as an embedding takes them.

    Args:
        y: (B,) or (1,) integers of any width; on a GPU, which would have to be waited for, their
            values are not looked at.
        classes: how many there are.

    Returns:
        (B,) or (1,) int64.

    Raises:
        ValueError: for another shape or dtype, or a label that does not exist.
    """
    if y.ndim != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(
            f"labels y are (B,) integers from 0 to {classes - 1}, got {y.dtype} {tuple(y.shape)}"
        )
    labels = y.long()
    if not y.is_cuda and values_known(labels):
        for label in labels.tolist():
            if not 0 <= label < classes:
                raise ValueError(
                    f"label {label} is none of the {classes} classes, 0 to {classes - 1}"
                )
    return labels


def small_images(low_res: Tensor | None, channels: int) -> Tensor:
    """What an up-sampling stage sees of the stage before it.

    Args:
        low_res: (B, C, h, w).
        channels: C, as of the noisy images.

    Raises:
        ValueError: if it is missing, of other channels, or no floating-point images, such as bytes.
    """
    if low_res is None:
        raise ValueError(
            "an up-sampler sees small images: denoiser.with_conditions(low_res=...), or "
            "ppap.diffusion.cascade.sample_cascade"
        )
    fits = low_res.ndim == 4 and low_res.shape[1] == channels
    if not (fits and low_res.is_floating_point()):
        raise ValueError(
            f"low_res are floating-point (B, {channels}, h, w) images in [-1, 1], got "
            f"{low_res.dtype} {tuple(low_res.shape)}; from_uint8 converts stored pixels"
        )
    return low_res


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 at least, whatever the input's and weights' dtype."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = at_least_float32(input, self.weight, self.bias)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps).to(input.dtype)


def group_norm(channels: int) -> GroupNorm32:
    if channels % NORM_GROUPS:
        raise ValueError(
            f"ADM networks need channel counts divisible by {NORM_GROUPS}, got {channels}; "
            "change model_channels or channel_mult"
        )
    return GroupNorm32(NORM_GROUPS, channels)


def zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@dataclass(frozen=True)
class BlockOptions:
    """What every residual and attention block of one network shares."""

    embedding: int
    dropout: float
    scale_shift: bool
    recompute: bool
    heads: int
    head_channels: int
    split_qkv_first: bool
    encoder_channels: int | None = None

    def heads_for(self, channels: int) -> int:
        if self.head_channels == -1:
            return self.heads
        if channels % self.head_channels:
            raise ValueError(
                f"{channels} channels cannot be split into heads of num_head_channels="
                f"{self.head_channels}"
            )
        return channels // self.head_channels


class Upsample(nn.Module):
    """Nearest-neighbour 2x up-sampling, then a 3x3 convolution if ``use_conv``."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else cast(Tensor, self.conv(x))


class Downsample(nn.Module):
    """2x down-sampling by a strided 3x3 convolution, or by average pooling."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = (
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))


class ResBlock(nn.Module):
    """Residual block conditioned on the timestep embedding, optionally resampling by 2."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        options: BlockOptions,
        resample: type[Upsample | Downsample] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = options.scale_shift
        self.recompute = options.recompute
        self.in_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = resample(channels, False) if resample else None
        self.emb_layers = nn.Sequential(
            nn.SiLU(),
            nn.Linear(options.embedding, (2 if options.scale_shift else 1) * out_channels),
        )
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = convolution(h)
        condition = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + condition)
        for layer in rest:
            h = layer(h)
        return cast(Tensor, self.skip_connection(x) + h)
