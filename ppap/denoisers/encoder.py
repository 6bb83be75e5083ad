"""The descending half that the ADM U-Net and the noisy classifier share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ppap.compute.modules import weights_dtype
from ppap.denoisers.attention import AttentionBlock
from ppap.denoisers.blocks import BlockOptions, Downsample, ResBlock, timestep_embedding

__all__ = ["Encoder", "TimestepEmbedSequential"]


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands the timestep embedding, and tokens, to the layers which take them."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, AttentionBlock):
                x = layer(x, tokens)
            else:
                x = layer(x)
        return x


class Encoder(nn.Module):
    """Time embedding, descending blocks and bottleneck: what both networks share.

    Attributes:
        channels: width at the bottleneck.
        downsampling: how many times smaller the bottleneck is than the input.
        skip_channels: widths of the descending blocks' outputs, first to last.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        channel_mult: Sequence[float],
        conv_resample: bool,
        resblock_updown: bool,
        dims: int,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        if dims != 2:
            raise ValueError(f"only images (dims=2) are supported, got dims={dims}")
        self.model_channels = model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, options.embedding),
            nn.SiLU(),
            nn.Linear(options.embedding, options.embedding),
        )
        channels = int(channel_mult[0] * model_channels)
        blocks: list[nn.Module] = [
            TimestepEmbedSequential(nn.Conv2d(in_channels, channels, 3, padding=1))
        ]
        self.skip_channels = [channels]
        self.downsampling = 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                width = int(mult * model_channels)
                layers: list[nn.Module] = [ResBlock(channels, width, options)]
                channels = width
                if self.downsampling in attention_resolutions:
                    layers.append(AttentionBlock(channels, options))
                blocks.append(TimestepEmbedSequential(*layers))
                self.skip_channels.append(channels)
            if level < len(channel_mult) - 1:
                down: nn.Module = (
                    ResBlock(channels, channels, options, resample=Downsample)
                    if resblock_updown
                    else Downsample(channels, conv_resample)
                )
                blocks.append(TimestepEmbedSequential(down))
                self.skip_channels.append(channels)
                self.downsampling *= 2
        self.channels = channels
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(channels, channels, options),
            AttentionBlock(channels, options),
            ResBlock(channels, channels, options),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the torso's convolutions."""
        return weights_dtype(self.input_blocks[0], torch.float32)

    def _embed(self, timesteps: Tensor) -> Tensor:
        embedding = timestep_embedding(timesteps, self.model_channels)
        embedding = embedding.to(weights_dtype(self.time_embed, embedding.dtype))
        return cast(Tensor, self.time_embed(embedding))

    def _encode(
        self, x: Tensor, emb: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Bottleneck features and the outputs of every descending block."""
        h = x.to(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb, tokens)
            skips.append(h)
        return self.middle_block(h, emb, tokens), skips

    def convert_to_fp16(self) -> None:
        """Cast the convolutions of the torso to float16, as published; norms stay float32."""
        self.convert_to(torch.float16)

    def convert_to_fp32(self) -> None:
        """Undo :meth:`convert_to_fp16`."""
        self.convert_to(torch.float32)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Cast the convolutions of the torso, e.g. to bfloat16; norms stay float32."""
        for name, part in self.named_children():
            if name not in ("time_embed", "label_emb", "out"):
                for module in part.modules():
                    if isinstance(module, nn.Conv1d | nn.Conv2d):
                        module.to(dtype)
