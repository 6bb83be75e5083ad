"""What beats two convolutions more on a CPU: adapters merged at each call, samples as groups."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap_kernels.conv_shapes import Geometry
from ppap_kernels.grouped_lora_linear import of_samples

__all__ = ["exact_when_merged", "grouped_on_cpu", "merging_pays"]

# Up to this many in-channels a CPU's time for a convolution goes into memory, not arithmetic.
NARROW = 64


def exact_when_merged(x: Tensor) -> bool:
    """Where a weight with its adapter merged in is as good as the two apart: not in 16 bits."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def merging_pays(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether W + s B A per call beats two convolutions more.

    Measured on one core, float32, ms merged / apart, channels x height, batch 40, rank 4: forward
    and dx of 3 x 3 5.4 / 11.3 (16 x 32), 3.6 / 5.8 (32 x 16), 3.3 / 4.3 (64 x 8), all gradients
    8.3 / 16.1, 5.4 / 7.4, 5.1 / 5.4; 1 x 1 two to three times as fast. But all gradients at batch
    8, 256 x 14: 96 / 70, as the merged weight's gradient is as large as the base's; and 512 x 7,
    batch 8, where the weight is larger than the images, lost forward too.
    """
    if not exact_when_merged(x) or weight.numel() > x.numel():
        return False
    trains = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return not trains or weight.shape[1] <= NARROW


def grouped_on_cpu(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, index: Tensor, bias: Tensor | None,
    scale: float, geometry: Geometry,
) -> Tensor:  # fmt: skip
    """One convolution with the samples as its groups: of merged weights or of A alone.

    Measured on one core, float32, 5 experts, batch 40, rank 4 (16), ms for forward and dx, merged
    weights / A alone / `grouped_lora_conv_reference` / sorted and expert by expert, channels x
    height: 16 x 32 4.6 / 7.3 / 23 / 8.3 (5.0 / 12 / 55 / 9.6), 32 x 16 4.8 / 6.4 / 8.1 / 6.3
    (4.4 / 7.4 / 14 / 6.8), 64 x 8 4.8 / 3.7 / 5.6 / 3.7 (8.4 / 5.9 / 6.3 / 6.3), 128 x 8
    27 / 12 / 11 / 12: merged pays while a sample's weights are not much larger than the sample.
    """
    images = x.reshape(1, -1, *x.shape[2:])
    if weight.numel() <= 2 * x[0].numel():
        update = scale * torch.bmm(b, a.flatten(2))
        merged = weight.flatten(1) + F.pad(update, (0, 0, 0, 0, 1, 0))
        own = merged[index + 1].view(-1, *weight.shape[1:])
        biases = None if bias is None else bias.repeat(len(x))
        y = F.conv2d(images, own, biases, *geometry, groups=len(x))
        return y.view(len(x), len(weight), *y.shape[2:])
    base = F.conv2d(x, weight, bias, *geometry)
    down = a[index.clamp(min=0)].flatten(0, 1)
    low = F.conv2d(images, down, None, *geometry, groups=len(x))
    up = of_samples(b, index) * scale
    return base + torch.bmm(up, low.view(len(x), a.shape[1], -1)).view(base.shape)
