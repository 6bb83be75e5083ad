"""What an image processor of transformers does to images, measured."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ppap.files.checkpoints import CheckpointError, one_line
from ppap.files.hub import extra

__all__ = ["preprocessing"]

COLOURS = ((0, 0, 0), (255, 255, 255), (51, 102, 204))
SIDES = (224, 448)
"""Of example images: multiples of all usual patches, so that no processor pads them."""


def preprocessing(
    source: str | Path, folder: Path
) -> tuple[list[float], list[float], tuple[int, int] | None]:
    """Mean and std per channel and the size that the model's image processor gives to squares.

    They are measured, for how a processor's settings act depends on its class and its version.
    """
    try:
        processor = extra("transformers").AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        low, high, middle = (
            processor(_square(colour, side), return_tensors="pt")["pixel_values"].double()
            for colour, side in zip(COLOURS, (SIDES[0], *SIDES), strict=True)
        )
        offset = low[0, :, 0, 0]
        scale = high[0, :, 0, 0] - offset
        expected = offset + scale * torch.tensor(COLOURS[2]).double() / 255
        expected = expected[None, :, None, None].expand_as(middle)
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(
            f"{source} has no preprocessor_config.json that can be used ({one_line(error)})"
        ) from error
    if not (scale > 0).all() or not torch.allclose(middle, expected, rtol=1e-4, atol=1e-4):
        raise CheckpointError(
            f"{source} wants more than resizing and a mean and std per channel; "
            "wrap the network in a ppap.predictors.predictor.Predictor of your own"
        )
    height, width = low.shape[2:]
    size = (height, width) if middle.shape == low.shape else None
    return (-offset / scale).tolist(), (1 / scale).tolist(), size


def _square(colour: tuple[int, int, int], side: int) -> Tensor:
    """(3, side, side) uint8."""
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
