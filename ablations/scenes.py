"""The networks of the embedded setting ``scenes``: 32x32 RGB renderings of solids."""

from __future__ import annotations

from ppap.denoiser import SpaceToDepth
from ppap.unet import UNetModel

SHAPE = (3, 32, 32)


def unet() -> SpaceToDepth:
    """The unconditional ADM U-Net, on images folded to 16x16x12 (0.9 M parameters)."""
    network = UNetModel(
        image_size=16,
        in_channels=12,
        model_channels=32,
        out_channels=12,
        num_res_blocks=1,
        attention_resolutions=(4,),
        channel_mult=(1, 1, 2),
        num_head_channels=32,
        use_scale_shift_norm=True,
    )
    return SpaceToDepth(network, factor=2)
