"""The ADM noisy classifier of openai/guided-diffusion: half a U-Net and a pooling head.

Names and keys are the published ones, as in :mod:`ppap.denoisers.unet`. Architecture: Dhariwal &
Nichol (arXiv 2105.05233), appendix H.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ppap.compute.modules import weights_dtype
from ppap.denoisers.attention import AttentionPool2d
from ppap.denoisers.blocks import BlockOptions, group_norm, zeroed
from ppap.denoisers.encoder import Encoder

__all__ = ["EncoderUNetModel"]

SPATIAL_POOL_WIDTH = 2048


class EncoderUNetModel(Encoder):
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
            dims,
            BlockOptions(
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
                group_norm(self.channels),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d((1, 1)),
                zeroed(nn.Conv2d(self.channels, out_channels, 1)),
                nn.Flatten(),
            ),
            "attention": lambda: nn.Sequential(
                group_norm(self.channels),
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
                group_norm(SPATIAL_POOL_WIDTH),
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
        wide = weights_dtype(self.out, x.dtype)
        if self.pool.startswith("spatial"):
            pooled = [part.to(wide).mean(dim=(2, 3)) for part in (*skips, h)]
            return cast(Tensor, self.out(torch.cat(pooled, dim=1))).to(x.dtype)
        return cast(Tensor, self.out(h.to(wide))).to(x.dtype)
