"""The ADM U-Net of openai/guided-diffusion, which is improved-diffusion's, too.

It takes the tokens that :mod:`ppap.denoisers.glide` adds. Constructor arguments carry their
published names and every parameter its published state-dict key, so a public checkpoint loads
strictly. Architecture: Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis* (arXiv
2105.05233), appendix C.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ppap.compute.modules import weights_dtype
from ppap.denoisers.attention import AttentionBlock
from ppap.denoisers.blocks import (
    BlockOptions,
    ResBlock,
    Upsample,
    class_labels,
    group_norm,
    zeroed,
)
from ppap.denoisers.encoder import Encoder, TimestepEmbedSequential

__all__ = ["UNetModel"]


class UNetModel(Encoder):
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
        def options(heads: int) -> BlockOptions:
            return BlockOptions(
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
            group_norm(channels),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, out_channels, 3, padding=1)),
        )
        if use_fp16:
            self.convert_to_fp16()

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Network output for noisy images.

        Args:
            x: (B, C, H, W) noisy images.
            timesteps: (B,) original timesteps.
            y: (B,) or (1,) class labels, if and only if the network is class-conditional.

        Returns:
            (B, out_channels, H, W) in the dtype of ``x``.

        Raises:
            ValueError: if labels are missing, superfluous, no integers or of no class.
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError("labels y go with a class-conditional network, and only with one")
        emb = self._embed(timesteps)
        if y is not None:
            emb = emb + self.label_emb(class_labels(y, self.label_emb.num_embeddings))
        return self._denoise(x, emb)

    def _denoise(self, x: Tensor, emb: Tensor, tokens: Tensor | None = None) -> Tensor:
        h, skips = self._encode(x, emb, tokens)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, tokens)
        return cast(Tensor, self.out(h.to(weights_dtype(self.out, x.dtype)))).to(x.dtype)
