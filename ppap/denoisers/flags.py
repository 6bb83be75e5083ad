"""Published flags of public networks: what they build, under their published names.

Sources: the READMEs of openai/guided-diffusion and openai/improved-diffusion, and
``model_creation.py`` of openai/glide-text2im.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from ppap.denoisers.classifier import EncoderUNetModel
from ppap.denoisers.glide import SuperResText2ImUNet, Text2ImUNet
from ppap.denoisers.unet import UNetModel
from ppap.diffusion.denoiser import Denoiser, RescaledTimesteps
from ppap.diffusion.schedule import make_schedule

__all__ = ["ClassifierFlags", "DenoiserFlags", "Flags", "GlideFlags", "UNetFlags"]

N = TypeVar("N", int, float)
Numbers = str | float | Sequence[float] | None
"""As published, in a text; or one number or several."""

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
    ``"32,16,8"``, and may be numbers themselves, as in files of settings; an empty
    ``channel_mult`` follows from the image size.

    Raises:
        ValueError: for an image size without published multipliers, or what are no numbers.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: Numbers = "16,8"
    channel_mult: Numbers = ""
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
    channel_mult: Numbers = ""
    num_heads: int = 1
    num_head_channels: int = 64
    num_heads_upsample: int = -1
    attention_resolutions: Numbers = "32,16,8"
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
    classifier_attention_resolutions: Numbers = "32,16,8"
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True
    classifier_pool: str = "attention"
    channel_mult: Numbers = ""
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


def _multipliers(image_size: int, given: Numbers) -> tuple[float, ...]:
    if found := _numbers("channel_mult", given, float):
        return found
    if image_size not in CHANNEL_MULT:
        known = ", ".join(map(str, CHANNEL_MULT))
        raise ValueError(f"give channel_mult for image_size={image_size}; it is known for {known}")
    return CHANNEL_MULT[image_size]


def _factors(image_size: int, resolutions: Numbers) -> tuple[int, ...]:
    sizes = _numbers("attention resolutions", resolutions, int)
    if not all(size > 0 for size in sizes):
        raise ValueError(f"attention resolutions are sizes of maps, got {resolutions!r}")
    return tuple(image_size // size for size in sizes)


def _numbers(what: str, given: Numbers, kind: Callable[[Any], N]) -> tuple[N, ...]:
    """Numbers as flags have them, ``"32,16"``, or as files of settings do, 16 or [32, 16]."""
    parts = given.split(",") if isinstance(given, str) else given
    try:
        several = parts if isinstance(parts, Iterable) else (parts,)
        return tuple(kind(part) for part in several if part not in ("", None))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{what} are numbers such as "32,16" or (32, 16), got {given!r}'
        ) from error
