"""The ADM U-Net family: U-Net and noisy classifier of openai/guided-diffusion.

The U-Net is improved-diffusion's, too, and takes the tokens that :mod:`ppap.denoisers.glide` adds.

Constructor arguments carry their published names and every parameter its published
state-dict key, so a public checkpoint loads strictly. Architecture: Dhariwal & Nichol,
*Diffusion Models Beat GANs on Image Synthesis* (arXiv 2105.05233), appendices C and H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["EncoderUNetModel", "UNetModel", "timestep_embedding"]

NORM_GROUPS = 32
SPATIAL_POOL_WIDTH = 2048


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


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 whatever the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


def _norm(channels: int) -> GroupNorm32:
    if channels % NORM_GROUPS:
        raise ValueError(
            f"ADM networks need channel counts divisible by {NORM_GROUPS}, got {channels}; "
            "change model_channels or channel_mult"
        )
    return GroupNorm32(NORM_GROUPS, channels)


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@dataclass(frozen=True)
class _BlockOptions:
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
        options: _BlockOptions,
        resample: type[Upsample | Downsample] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = options.scale_shift
        self.recompute = options.recompute
        self.in_layers = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = resample(channels, False) if resample else None
        self.emb_layers = nn.Sequential(
            nn.SiLU(),
            nn.Linear(options.embedding, (2 if options.scale_shift else 1) * out_channels),
        )
        self.out_layers = nn.Sequential(
            _norm(out_channels),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
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


def _attend(
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

    def __init__(self, channels: int, options: _BlockOptions) -> None:
        super().__init__()
        self.heads = options.heads_for(channels)
        self.split_qkv_first = options.split_qkv_first
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = (
            None
            if options.encoder_channels is None
            else nn.Conv1d(options.encoder_channels, 2 * channels, 1)
        )
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        flat = x.flatten(2)
        encoder_kv = None
        if self.encoder_kv is not None and tokens is not None:
            encoder_kv = self.encoder_kv(tokens)
        h = _attend(self.qkv(self.norm(flat)), self.heads, self.split_qkv_first, encoder_kv)
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
        mixed = _attend(self.qkv_proj(tokens), self.heads, split_qkv_first=True)
        return cast(Tensor, self.c_proj(mixed)[:, :, 0])


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


class _Encoder(nn.Module):
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
        use_fp16: bool,
        dims: int,
        options: _BlockOptions,
    ) -> None:
        super().__init__()
        if dims != 2:
            raise ValueError(f"only images (dims=2) are supported, got dims={dims}")
        self.model_channels = model_channels
        self.dtype = torch.float16 if use_fp16 else torch.float32
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

    def _embed(self, timesteps: Tensor) -> Tensor:
        return cast(Tensor, self.time_embed(timestep_embedding(timesteps, self.model_channels)))

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
        self.dtype = dtype
        for name, part in self.named_children():
            if name not in ("time_embed", "label_emb", "out"):
                for module in part.modules():
                    if isinstance(module, nn.Conv1d | nn.Conv2d):
                        module.to(dtype)


class UNetModel(_Encoder):
    """The ADM U-Net: predicts noise (and, with doubled output, variance) from (x_t, t).

    Arguments carry their published names. ``attention_resolutions`` are down-sampling
    factors (8 means "where the map is 8 times smaller"). ``use_new_attention_order``,
    ``num_head_channels`` and ``resblock_updown`` must match the checkpoint: they change
    what its weights mean without changing their shapes. ``encoder_channels`` is the width of
    the tokens that attention sees besides the image; None for networks without.

    Raises:
        ValueError: for channel counts the group norms or attention heads cannot split.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        encoder_channels: int | None = None,
    ) -> None:
        def options(heads: int) -> _BlockOptions:
            return _BlockOptions(
                4 * model_channels,
                dropout,
                use_scale_shift_norm,
                use_checkpoint,
                heads,
                num_head_channels,
                use_new_attention_order,
                encoder_channels,
            )

        super().__init__(
            in_channels,
            model_channels,
            num_res_blocks,
            attention_resolutions,
            channel_mult,
            conv_resample,
            resblock_updown,
            use_fp16,
            dims,
            options(num_heads),
        )
        self.image_size = image_size
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_classes = num_classes
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, 4 * model_channels)
        ascending = options(num_heads if num_heads_upsample == -1 else num_heads_upsample)
        skips, channels, downsampling = list(self.skip_channels), self.channels, self.downsampling
        blocks: list[nn.Module] = []
        for level in reversed(range(len(channel_mult))):
            width = int(channel_mult[level] * model_channels)
            for repeat in range(num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(channels + skips.pop(), width, ascending)]
                channels = width
                if downsampling in attention_resolutions:
                    layers.append(AttentionBlock(channels, ascending))
                if level and repeat == num_res_blocks:
                    layers.append(
                        ResBlock(channels, channels, ascending, resample=Upsample)
                        if resblock_updown
                        else Upsample(channels, conv_resample)
                    )
                    downsampling //= 2
                blocks.append(TimestepEmbedSequential(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            _norm(channels),
            nn.SiLU(),
            _zeroed(nn.Conv2d(channels, out_channels, 3, padding=1)),
        )
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Network output for noisy images.

        Args:
            x: (B, C, H, W) noisy images.
            timesteps: (B,) original timesteps.
            y: (B,) class labels, if and only if the network is class-conditional.

        Returns:
            (B, out_channels, H, W) in the dtype of ``x``.

        Raises:
            ValueError: if labels are missing or superfluous.
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError("labels y go with a class-conditional network, and only with one")
        emb = self._embed(timesteps)
        if y is not None:
            emb = emb + self.label_emb(y)
        return self._denoise(x, emb)

    def _denoise(self, x: Tensor, emb: Tensor, tokens: Tensor | None = None) -> Tensor:
        h, skips = self._encode(x, emb, tokens)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, tokens)
        return cast(Tensor, self.out(h.to(x.dtype)))


class EncoderUNetModel(_Encoder):
    """The ADM noisy classifier: half a U-Net and a pooling head.

    Arguments carry their published names; ``pool`` is ``"adaptive"``, ``"attention"``,
    ``"spatial"`` or ``"spatial_v2"``.

    Raises:
        ValueError: for an unknown ``pool``, or ``"attention"`` without num_head_channels.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ) -> None:
        super().__init__(
            in_channels,
            model_channels,
            num_res_blocks,
            attention_resolutions,
            channel_mult,
            conv_resample,
            resblock_updown,
            use_fp16,
            dims,
            _BlockOptions(
                4 * model_channels,
                dropout,
                use_scale_shift_norm,
                use_checkpoint,
                num_heads,
                num_head_channels,
                use_new_attention_order,
            ),
        )
        del num_heads_upsample  # published, and without effect on a network with no ascent
        self.pool = pool
        self.out_channels = out_channels
        features = sum(self.skip_channels) + self.channels
        heads: dict[str, Callable[[], nn.Sequential]] = {
            "adaptive": lambda: nn.Sequential(
                _norm(self.channels),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d((1, 1)),
                _zeroed(nn.Conv2d(self.channels, out_channels, 1)),
                nn.Flatten(),
            ),
            "attention": lambda: nn.Sequential(
                _norm(self.channels),
                nn.SiLU(),
                AttentionPool2d(
                    image_size // self.downsampling, self.channels, num_head_channels, out_channels
                ),
            ),
            "spatial": lambda: nn.Sequential(
                nn.Linear(features, SPATIAL_POOL_WIDTH),
                nn.ReLU(),
                nn.Linear(SPATIAL_POOL_WIDTH, out_channels),
            ),
            "spatial_v2": lambda: nn.Sequential(
                nn.Linear(features, SPATIAL_POOL_WIDTH),
                _norm(SPATIAL_POOL_WIDTH),
                nn.SiLU(),
                nn.Linear(SPATIAL_POOL_WIDTH, out_channels),
            ),
        }
        if pool not in heads:
            raise ValueError(f"unknown pool {pool!r}; choose from {', '.join(heads)}")
        if pool == "attention" and num_head_channels == -1:
            raise ValueError("pool='attention' needs num_head_channels")
        self.out = heads[pool]()
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """(B, out_channels) outputs, logits for a classifier, from x: (B, C, H, W), t: (B,)."""
        h, skips = self._encode(x, self._embed(timesteps))
        if self.pool.startswith("spatial"):
            pooled = [part.to(x.dtype).mean(dim=(2, 3)) for part in (*skips, h)]
            return cast(Tensor, self.out(torch.cat(pooled, dim=1)))
        return cast(Tensor, self.out(h.to(x.dtype)))
