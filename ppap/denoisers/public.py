"""Public diffusion models and noisy classifiers, by name.

A model's architecture and schedule follow from the flags it was published with (the READMEs
of openai/guided-diffusion and openai/improved-diffusion, ``model_creation.py`` of
openai/glide-text2im); its file is read weights-only and must fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import nn

from ppap.denoisers.glide import SuperResText2ImUNet, Text2ImUNet
from ppap.denoisers.unet import EncoderUNetModel, UNetModel
from ppap.diffusion.denoiser import Denoiser, RescaledTimesteps, freeze
from ppap.diffusion.schedule import make_schedule
from ppap.files.checkpoints import CheckpointError, load_weights

__all__ = [
    "CLASSIFIERS",
    "DENOISERS",
    "ClassifierFlags",
    "GlideFlags",
    "PublicModel",
    "UNetFlags",
    "load_denoiser",
    "load_noisy_classifier",
]

HOST = "https://openaipublic.blob.core.windows.net/diffusion"
CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}


class Flags(Protocol):
    """The published settings of one network."""

    def network(self) -> nn.Module:
        """The network, with weights yet to be loaded."""
        ...


class DenoiserFlags(Flags, Protocol):
    """The published settings of a network and its schedule."""

    def denoiser(self, network: nn.Module) -> Denoiser:
        """The network on the schedule it was trained on."""
        ...


@dataclass(frozen=True)
class UNetFlags:
    """Flags of improved-diffusion and guided-diffusion, under their published names.

    Defaults are guided-diffusion's. ``attention_resolutions`` are sizes of maps, e.g.
    ``"32,16,8"``; an empty ``channel_mult`` follows from the image size.

    Raises:
        ValueError: for an image size without published multipliers.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: str = "16,8"
    channel_mult: str = ""
    dropout: float = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    rescale_timesteps: bool = False
    num_classes: int = 1000

    def network(self) -> UNetModel:
        """The U-Net, with weights yet to be loaded."""
        return UNetModel(
            image_size=self.image_size,
            in_channels=3,
            model_channels=self.num_channels,
            out_channels=6 if self.learn_sigma else 3,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=_factors(self.image_size, self.attention_resolutions),
            dropout=self.dropout,
            channel_mult=_multipliers(self.image_size, self.channel_mult),
            num_classes=self.num_classes if self.class_cond else None,
            num_heads=self.num_heads,
            num_head_channels=self.num_head_channels,
            num_heads_upsample=self.num_heads_upsample,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            use_new_attention_order=self.use_new_attention_order,
        )

    def denoiser(self, network: nn.Module) -> Denoiser:
        """The network on its schedule; a conditional one needs ``with_conditions(y=labels)``."""
        if self.rescale_timesteps:
            network = RescaledTimesteps(network, 1000 / self.diffusion_steps)
        return Denoiser(
            network,
            make_schedule(self.noise_schedule, self.diffusion_steps),
            (3, self.image_size, self.image_size),
            learned_variance=self.learn_sigma,
        )


@dataclass(frozen=True)
class GlideFlags:
    """Options of glide-text2im under their published names; defaults are the base model's."""

    image_size: int = 64
    num_channels: int = 192
    num_res_blocks: int = 3
    channel_mult: str = ""
    num_heads: int = 1
    num_head_channels: int = 64
    num_heads_upsample: int = -1
    attention_resolutions: str = "32,16,8"
    dropout: float = 0.1
    text_ctx: int = 128
    xf_width: int = 512
    xf_layers: int = 16
    xf_heads: int = 8
    xf_final_ln: bool = True
    xf_padding: bool = True
    n_vocab: int = 50257
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    diffusion_steps: int = 1000
    noise_schedule: str = "cosine"  # published as squaredcos_cap_v2
    super_res: bool = False

    def network(self) -> Text2ImUNet:
        """The base network or the up-sampler, with weights yet to be loaded."""
        return (SuperResText2ImUNet if self.super_res else Text2ImUNet)(
            in_channels=3,
            out_channels=6,
            model_channels=self.num_channels,
            attention_resolutions=_factors(self.image_size, self.attention_resolutions),
            channel_mult=_multipliers(self.image_size, self.channel_mult),
            **{
                name: getattr(self, name)
                for name in (
                    "image_size", "num_res_blocks", "num_heads", "num_head_channels",
                    "num_heads_upsample", "dropout", "text_ctx", "xf_width", "xf_layers",
                    "xf_heads", "xf_final_ln", "xf_padding", "n_vocab", "use_scale_shift_norm",
                    "resblock_updown",
                )
            },
        )  # fmt: skip

    def denoiser(self, network: nn.Module) -> Denoiser:
        """The network on its schedule, under the empty caption.

        ``with_conditions(tokens=..., mask=...)`` sets captions; an up-sampler needs
        ``with_conditions(low_res=...)``.
        """
        schedule = make_schedule(self.noise_schedule, self.diffusion_steps)
        shape = (3, self.image_size, self.image_size)
        return Denoiser(network, schedule, shape, learned_variance=True)


@dataclass(frozen=True)
class ClassifierFlags:
    """Flags of guided-diffusion's noisy classifiers, under their published names."""

    image_size: int = 64
    classifier_width: int = 128
    classifier_depth: int = 2
    classifier_attention_resolutions: str = "32,16,8"
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True
    classifier_pool: str = "attention"
    channel_mult: str = ""
    num_classes: int = 1000

    def network(self) -> EncoderUNetModel:
        """The classifier, with weights yet to be loaded."""
        return EncoderUNetModel(
            image_size=self.image_size,
            in_channels=3,
            model_channels=self.classifier_width,
            out_channels=self.num_classes,
            num_res_blocks=self.classifier_depth,
            attention_resolutions=_factors(self.image_size, self.classifier_attention_resolutions),
            channel_mult=_multipliers(self.image_size, self.channel_mult),
            num_head_channels=64,
            use_scale_shift_norm=self.classifier_use_scale_shift_norm,
            resblock_updown=self.classifier_resblock_updown,
            pool=self.classifier_pool,
        )


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


def load_denoiser(
    name: str,
    path: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    **flags: Any,
) -> Denoiser:
    """A public diffusion model, frozen, on the CPU.

    Args:
        name: one of :data:`DENOISERS`, or a hub id or folder of a diffusers pipeline or U-Net
            (:func:`ppap.denoisers.diffusers_models.load_diffusers`), e.g.
            ``"google/ddpm-cifar10-32"``.
        path: the published file, or a folder that holds it; for diffusers, a local copy.
        dtype: ``torch.float16`` or ``torch.bfloat16`` casts convolutions and, in GLIDE, the
            text transformer; norms and embeddings stay float32, as published.
        flags: in place of published ones, for networks of the same kind and another size.

    Returns:
        The denoiser. Conditional ones need
        :meth:`ppap.diffusion.denoiser.Denoiser.with_conditions`.

    Raises:
        ValueError: for an unknown name or flag.
        CheckpointError: for a file that is absent, damaged, hostile or of another network.
    """
    if name in DENOISERS:
        model = _replaced(name, DENOISERS[name], flags)
        denoiser = model.flags.denoiser(_load(name, model, path, dtype))
        return cast(Denoiser, freeze(denoiser))
    if "/" not in name and not Path(name).is_dir():
        raise ValueError(
            f"unknown denoiser {name!r}; choose from {', '.join(DENOISERS)}, or name a diffusers "
            "folder or hub id such as google/ddpm-cifar10-32"
        )
    if flags:
        raise ValueError(f"a diffusers model brings its own settings; leave out {', '.join(flags)}")
    from ppap.denoisers.diffusers_models import load_diffusers

    return load_diffusers(path or name, dtype)


def load_noisy_classifier(
    name: str,
    path: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    **flags: Any,
) -> EncoderUNetModel:
    """ADM's classifier of noisy images, the model of its guidance (ADM-G), frozen, on the CPU.

    Args:
        name: one of :data:`CLASSIFIERS`.
        path: the published file, or a folder that holds it.
        dtype: as for :func:`load_denoiser`.
        flags: in place of published ones.

    Returns:
        (x_t: (B, 3, H, W), timesteps of 1000: (B,)) -> logits (B, 1000), to be the model of a
        :class:`ppap.guidance.guides.LikelihoodGuide`.

    Raises:
        ValueError: for an unknown name or flag.
        CheckpointError: as :func:`load_denoiser`.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}; choose from {', '.join(CLASSIFIERS)}")
    model = _replaced(name, CLASSIFIERS[name], flags)
    return cast(EncoderUNetModel, freeze(_load(name, model, path, dtype)))


def _replaced(name: str, model: PublicModel[F], flags: Mapping[str, Any]) -> PublicModel[F]:
    known = [field.name for field in fields(model.flags)]  # type: ignore[arg-type]
    if unknown := [flag for flag in flags if flag not in known]:
        raise ValueError(f"{name} has no flag {', '.join(unknown)}; it has {', '.join(known)}")
    return replace(model, flags=replace(model.flags, **flags))  # type: ignore[type-var]


def _load(
    name: str, model: PublicModel[Any], path: str | Path | None, dtype: torch.dtype
) -> nn.Module:
    file = Path(model.file).name
    if path is None:
        raise CheckpointError(f"{name} needs {file}; fetch {model.url} and give its path")
    path = Path(path) / file if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint of {name} at {path}; fetch {model.url}")
    with torch.device("meta"):
        network: UNetModel | EncoderUNetModel = model.flags.network()
    network.to_empty(device="cpu")  # every value comes from the file
    try:
        load_weights(network, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {name} is published at {model.url}") from error
    if dtype != torch.float32:
        network.convert_to(dtype)
    return network


def _multipliers(image_size: int, text: str) -> tuple[float, ...]:
    if text:
        return tuple(float(part) for part in text.split(","))
    if image_size not in CHANNEL_MULT:
        known = ", ".join(map(str, CHANNEL_MULT))
        raise ValueError(f"give channel_mult for image_size={image_size}; it is known for {known}")
    return CHANNEL_MULT[image_size]


def _factors(image_size: int, resolutions: str) -> tuple[int, ...]:
    return tuple(image_size // int(size) for size in resolutions.split(","))
