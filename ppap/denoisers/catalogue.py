"""Public diffusion models and noisy classifiers: names, files and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ppap.denoisers.flags import ClassifierFlags, DenoiserFlags, Flags, GlideFlags, UNetFlags

__all__ = ["CLASSIFIERS", "DENOISERS", "PublicModel"]

HOST = "https://openaipublic.blob.core.windows.net/diffusion"


F = TypeVar("F", bound=Flags)


@dataclass(frozen=True)
class PublicModel(Generic[F]):
    """One published checkpoint.

    Attributes:
        file: its path below :data:`HOST`.
        flags: it was trained with.
    """

    file: str
    flags: F

    @property
    def url(self) -> str:
        """Where the file is published."""
        return f"{HOST}/{self.file}"


def _adm(file: str, **flags: Any) -> PublicModel[DenoiserFlags]:
    published: dict[str, Any] = {
        "num_channels": 256,
        "num_head_channels": 64,
        "attention_resolutions": "32,16,8",
        "resblock_updown": True,
        "learn_sigma": True,
    }
    return PublicModel(f"jul-2021/{file}", UNetFlags(**published | flags))


def _improved(file: str, **flags: Any) -> PublicModel[DenoiserFlags]:
    published: dict[str, Any] = {
        "num_res_blocks": 3,
        "learn_sigma": True,
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "rescale_timesteps": True,
    }
    return PublicModel(f"march-2021/{file}", UNetFlags(**published | flags))


DENOISERS: Mapping[str, PublicModel[DenoiserFlags]] = {
    "adm-imagenet64-cond": _adm(
        "64x64_diffusion.pt",
        num_channels=192,
        num_res_blocks=3,
        dropout=0.1,
        class_cond=True,
        use_new_attention_order=True,
        noise_schedule="cosine",
    ),
    "adm-imagenet128-cond": _adm(
        "128x128_diffusion.pt", image_size=128, class_cond=True, num_heads=4, num_head_channels=-1
    ),
    "adm-imagenet256": _adm("256x256_diffusion_uncond.pt", image_size=256),
    "adm-imagenet256-cond": _adm("256x256_diffusion.pt", image_size=256, class_cond=True),
    "adm-imagenet512-cond": _adm("512x512_diffusion.pt", image_size=512, class_cond=True),
    "improved-cifar10": _improved("cifar10_uncond_50M_500K.pt", image_size=32, dropout=0.3),
    "improved-cifar10-vlb": _improved("cifar10_uncond_vlb_50M_500K.pt", image_size=32, dropout=0.3),
    "improved-imagenet64": _improved("imagenet64_uncond_100M_1500K.pt"),
    "improved-imagenet64-vlb": _improved("imagenet64_uncond_vlb_100M_1500K.pt"),
    "improved-imagenet64-cond": _improved(
        "imagenet64_cond_270M_250K.pt", num_channels=192, class_cond=True, rescale_timesteps=False
    ),
    "glide-base": PublicModel("dec-2021/base.pt", GlideFlags()),
    "glide-upsampler": PublicModel(
        "dec-2021/upsample.pt",
        GlideFlags(image_size=256, num_res_blocks=2, noise_schedule="linear", super_res=True),
    ),
}
"""Denoisers by name. Unconditional unless their names say otherwise."""

CLASSIFIERS: Mapping[str, PublicModel[ClassifierFlags]] = {
    f"adm-classifier{size}": PublicModel(
        f"jul-2021/{size}x{size}_classifier.pt",
        ClassifierFlags(size, classifier_depth=4 if size == 64 else 2),
    )
    for size in (64, 128, 256, 512)
}
"""ADM's noisy classifiers by name, of ImageNet's 1000 classes."""
