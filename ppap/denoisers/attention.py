"""Attention in the ADM U-Net family: between positions, to tokens, and as pooling."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.denoisers.blocks import BlockOptions, group_norm, zeroed

__all__ = ["AttentionBlock", "AttentionPool2d", "attend"]


def attend(
    qkv: Tensor, heads: int, split_qkv_first: bool, encoder_kv: Tensor | None = None
) -> Tensor:
    """Multi-head attention over positions: (B, 3C, T) -> (B, C, T).

    The two orders are the published ones: channels are q, k, v blocks each holding all
    heads (``split_qkv_first``), or heads each holding its own q, k, v (legacy). Positions
    also attend to tokens with ``encoder_kv``: (B or 1, 2C, S), in the same order.
    """

    def split(packed: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, width, length = packed.shape
        channels = width // (parts * heads)
        if split_qkv_first:
            return packed.reshape(batch, parts, heads, channels, length).unbind(1)
        return packed.reshape(batch, heads, parts, channels, length).unbind(2)

    batch, _, length = qkv.shape
    q, k, v = split(qkv, 3)
    if encoder_kv is not None:
        token_k, token_v = split(encoder_kv.expand(batch, -1, -1), 2)
        k, v = torch.cat([token_k, k], dim=-1), torch.cat([token_v, v], dim=-1)
    mixed = F.scaled_dot_product_attention(
        q.transpose(-1, -2), k.transpose(-1, -2), v.transpose(-1, -2)
    )
    return mixed.transpose(-1, -2).reshape(batch, -1, length)


class AttentionBlock(nn.Module):
    """Attention of spatial positions to each other, and to tokens, with a residual connection."""

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.heads = options.heads_for(channels)
        self.split_qkv_first = options.split_qkv_first
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = (
            None
            if options.encoder_channels is None
            else nn.Conv1d(options.encoder_channels, 2 * channels, 1)
        )
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        flat = x.flatten(2)
        encoder_kv = None
        if self.encoder_kv is not None and tokens is not None:
            encoder_kv = self.encoder_kv(tokens)
        h = attend(self.qkv(self.norm(flat)), self.heads, self.split_qkv_first, encoder_kv)
        return cast(Tensor, (flat + self.proj_out(h)).reshape(x.shape))


class AttentionPool2d(nn.Module):
    """CLIP-style attention pooling: the mean token attends to all positions."""

    def __init__(self, size: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.empty(channels, size**2 + 1))
        nn.init.normal_(self.positional_embedding, std=channels**-0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        mixed = attend(self.qkv_proj(tokens), self.heads, split_qkv_first=True)
        return cast(Tensor, self.c_proj(mixed)[:, :, 0])
