"""Public diffusion models and noisy classifiers, by name.

A model's architecture and schedule follow from the flags it was published with; its file is read
weights-only and must fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ppap.denoisers.catalogue import CLASSIFIERS, DENOISERS, PublicModel
from ppap.denoisers.classifier import EncoderUNetModel
from ppap.denoisers.flags import Flags
from ppap.denoisers.unet import UNetModel
from ppap.diffusion.denoiser import Denoiser, freeze
from ppap.files.checkpoints import CheckpointError, load_weights

__all__ = ["load_denoiser", "load_noisy_classifier"]

F = TypeVar("F", bound=Flags)


def load_denoiser(
    name: str | Path,
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
        ValueError: for an unknown name or flag, or a dtype of no floating-point numbers.
        CheckpointError: for a file that is absent, damaged, hostile or of another network.
    """
    name = str(name)
    _check_dtype(dtype)
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
        ValueError: as :func:`load_denoiser`.
        CheckpointError: as :func:`load_denoiser`.
    """
    _check_dtype(dtype)
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}; choose from {', '.join(CLASSIFIERS)}")
    model = _replaced(name, CLASSIFIERS[name], flags)
    return cast(EncoderUNetModel, freeze(_load(name, model, path, dtype)))


def _check_dtype(dtype: Any) -> None:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is a floating-point type such as torch.float16, got {dtype!r}")


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
