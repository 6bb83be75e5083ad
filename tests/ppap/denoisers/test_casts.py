"""Networks cast as a whole, as PyTorch's modules are: `.double()`, `.half()`, `.bfloat16()`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.denoisers.classifier import EncoderUNetModel
from ppap.denoisers.folded import FoldedUNet
from ppap.denoisers.glide import Text2ImUNet
from ppap.denoisers.preconditioned import Preconditioned
from ppap.denoisers.unet import UNetModel
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.schedule import linear_schedule

SCHEDULE = linear_schedule()
SIZE = 8
SHAPE = (3, SIZE, SIZE)
COMMON: dict[str, Any] = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
}
CAPTIONS: dict[str, Any] = {
    "text_ctx": 7, "xf_width": 32, "xf_layers": 1, "xf_heads": 4, "xf_final_ln": True,
    "xf_padding": True, "n_vocab": 13, "num_head_channels": 16,
}  # fmt: skip


def unet(**options: Any) -> UNetModel:
    sizes = {"image_size": SIZE, "in_channels": 3, "out_channels": 3}
    return UNetModel(**{**sizes, **COMMON, **options})


def classifier(pool: str) -> EncoderUNetModel:
    return EncoderUNetModel(SIZE, 3, out_channels=5, pool=pool, num_head_channels=16, **COMMON)


DENOISERS: dict[str, Callable[[], nn.Module]] = {
    "unconditional": unet,
    "scale and shift": lambda: unet(use_scale_shift_norm=True, resblock_updown=True),
    "torso in half precision": lambda: unet(use_fp16=True),
    "captions": lambda: Text2ImUNet(in_channels=3, out_channels=3, **COMMON, **CAPTIONS),
    "folded": lambda: FoldedUNet(3, unet(in_channels=12, out_channels=32), features=8),
    "preconditioned": lambda: Preconditioned(unet(), SCHEDULE, 0.4),
}
CASTS = [(torch.float64, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.08)]


def seeded(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *SHAPE, generator=generator), torch.tensor([7, 900])


@torch.no_grad()
@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize(("dtype", "tolerance"), CASTS)
def test_a_denoiser_whose_network_is_cast_predicts_nearly_the_same(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    network = seeded(DENOISERS[name]())
    single = Denoiser(copy.deepcopy(network).float(), SCHEDULE, SHAPE)(*inputs()).epsilon
    cast = Denoiser(network.to(dtype), SCHEDULE, SHAPE)(*inputs()).epsilon
    assert cast.dtype == torch.float32
    assert 0 < (cast - single).abs().max() < tolerance * single.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
@pytest.mark.parametrize(("dtype", "tolerance"), CASTS)
def test_a_classifier_that_is_cast_sees_nearly_the_same(
    pool: str, dtype: torch.dtype, tolerance: float
) -> None:
    network = seeded(classifier(pool))
    single = network(*inputs())
    cast = network.to(dtype)(*inputs())
    assert cast.dtype == torch.float32
    assert 0 < (cast - single).abs().max() < tolerance * single.abs().max()


@torch.no_grad()
def test_in_double_precision_nothing_but_the_timestep_is_rounded_to_single() -> None:
    """Of the network in double precision, seen by central differences that single would drown."""
    network = seeded(unet()).double()
    x, t = inputs()
    x, step = x.double(), 1e-10
    change = network(x + step, t) - network(x - step, t)
    assert change.dtype == torch.float64
    slope = change / (2 * step)
    wider = (network(x + 1e-5, t) - network(x - 1e-5, t)) / 2e-5
    torch.testing.assert_close(slope, wider, rtol=1e-3, atol=1e-3 * float(wider.abs().max()))


def test_the_torso_keeps_the_type_that_it_was_converted_to() -> None:
    network = unet(use_fp16=True)
    assert network.dtype == torch.float16
    network.convert_to(torch.bfloat16)
    assert network.dtype == torch.bfloat16
    network.convert_to_fp32()
    assert network.dtype == torch.float32
    assert network.double().dtype == torch.float64
